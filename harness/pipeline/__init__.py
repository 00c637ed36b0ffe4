"""A run, from a request over its plan to its results; only ``harness.pipeline.ray_session`` imports Ray."""
