"""Judges: vision-language models, local or behind an API, and people, asked about the pictures of a run."""
