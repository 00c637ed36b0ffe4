"""The harness's version, as run records and requests to servers name it."""

__version__ = "0.1.0"
