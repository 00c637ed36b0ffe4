"""Makers of the shapes world: training, benchmarks, measurement. No run imports them."""
