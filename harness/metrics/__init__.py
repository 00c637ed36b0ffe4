"""Columns become counts, intervals and tests; no model, no torch, and nothing slow to import."""
