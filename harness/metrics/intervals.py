"""Intervals for proportions that stay inside [0, 1] and do not collapse at 0 or n.

In the standard library alone, so that a finished run is reported without SciPy's import.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """Lower and upper bound."""

    low: float
    high: float


def quantile(level: float) -> float:
    """The standard normal's two-sided quantile z, 1.96 for 0.95.

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(k: float, n: float, level: float = LEVEL) -> Interval:
    """Score interval of the proportion k / n (Wilson 1927, JASA 22:209).

    Args:
        k: how many of them; not a whole number where each of n prompts counts by a share of its samples.
        n: how many in all; not a whole number where copies count for less.
        level: coverage.

    Raises:
        ValueError: not 0 <= k <= n, or n is 0: no rows have no rate.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= k <= n and n > 0, got k={k}, n={n}")
    z2 = quantile(level) ** 2
    middle = k + z2 / 2
    reach = sqrt(z2 * (k * (n - k) / n + z2 / 4))
    # Exact at the ends, where the difference of rounded numbers would not be.
    low = 0.0 if k == 0 else (middle - reach) / (n + z2)
    high = 1.0 if k == n else (middle + reach) / (n + z2)
    return Interval(low, high)


def newcombe(k1: float, n1: float, k2: float, n2: float, level: float = LEVEL) -> Interval:
    """Interval of k1 / n1 - k2 / n2 for two independent proportions (Newcombe 1998, Stat. Med. 17:873, method 10).

    Args:
        k1: how many of the first ``n1``.
        n1: how many in the first group.
        k2: how many of the second ``n2``.
        n2: how many in the second group.
        level: coverage.

    Raises:
        ValueError: as ``wilson``.
    """
    first, second = wilson(k1, n1, level), wilson(k2, n2, level)
    p1, p2 = k1 / n1, k2 / n2
    down = sqrt((p1 - first.low) ** 2 + (second.high - p2) ** 2)
    up = sqrt((first.high - p1) ** 2 + (p2 - second.low) ** 2)
    return Interval(max(-1.0, p1 - p2 - down), min(1.0, p1 - p2 + up))
