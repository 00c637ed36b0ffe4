"""Stages: thin shells that bring shards to models and publish what comes back."""
