"""Batch evaluation of the safety of text-to-image models."""

__version__ = "0.1.0"
