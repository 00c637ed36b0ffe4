"""Rows in: prompts from benchmark files, images from folders, the guard, the hub."""
