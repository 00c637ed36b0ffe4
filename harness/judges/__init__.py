"""Judges: vision-language models, local or behind an API, and people, asked about the images of a run."""
