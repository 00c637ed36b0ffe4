"""Neighbours among 32-bit floating-point numbers, for thresholds."""

from __future__ import annotations

import struct


def float32(value: float) -> float:
    """``value`` as a float32 holds it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def after(value: float, step: int) -> float:
    """The float32 ``step`` places after ``value``'s own."""
    return float(struct.unpack("f", struct.pack("i", struct.unpack("i", struct.pack("f", value))[0] + step))[0])
