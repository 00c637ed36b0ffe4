"""What a stage does when a model's micro-batch does not fit the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import TransientError


@contextmanager
def fitting(micro_batch: int, setting: str, card: str) -> Iterator[None]:
    """Out of memory inside leaves the shard for the next run, and names the micro-batch that would fit.

    Args:
        micro_batch: how many rows are at the model at once.
        setting: what the card calls that number.
        card: where it is set, for people.

    Raises:
        TransientError: out of memory.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = f"set {setting}: {micro_batch // 2} in {card}"
        advice = smaller if micro_batch > 1 else f"one image at a time does not fit; see memory_gb in {card}"
        raise TransientError(f"out of memory at micro_batch {micro_batch}; {advice}") from error
