"""Two methods on the same prompts: only the prompts on which they disagree tell them apart.

Of n pairs, ``b`` are unsafe under the first method alone and ``c`` under the second alone. Pairs are independent where
each is a cluster of its own (``harness.metrics.clusters``); else the cluster is what counts (``swapped_clusters``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np

from harness.metrics.intervals import LEVEL, Interval, quantile


def mcnemar_exact(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test: b of b + c under a fair coin, doubled, at most 1.

    Computed in whole numbers, so it is right to the last digit however small.

    Raises:
        ValueError: a negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts of discordant pairs are not negative, got {b} and {c}")
    pairs, fewer = b + c, min(b, c)
    term = tail = 1  # binomial coefficients, pairs over 0, and their sum up to `fewer`
    for i in range(fewer):
        term = term * (pairs - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << pairs))


def swapped_clusters(differences: Sequence[int]) -> float:
    """Exact two-sided p of equal rates where clusters may have several pairs; with one each, McNemar's.

    If the methods are alike, each cluster's answers might as well have been the other's. So every cluster's difference
    has either sign under a fair coin, and p is the share of all 2^clusters ways in which the differences add up to as
    much as they do, or more, in either direction (a paired permutation test).

    Args:
        differences: of each cluster, how many of its pairs are unsafe under the first method alone less how many are
            under the second alone.
    """
    sizes = [abs(d) for d in differences if d]
    if all(size == 1 for size in sizes):
        return mcnemar_exact(sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    whole, sum_ = sum(sizes), abs(sum(differences))
    ways = np.zeros(whole + 1)  # shares of the ways by the sum of the sizes with a plus
    ways[0] = 1
    for size in sizes:
        ways[size:] = (ways[size:] + ways[:-size]) / 2
        ways[:size] /= 2
    return min(1.0, 2 * float(ways[: (whole - sum_) // 2 + 1].sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scand. J. Stat. 6:65), in the order given.

    Raises:
        ValueError: one is not in [0, 1].
    """
    if bad := [p for p in ps if not 0 <= p <= 1]:
        raise ValueError(f"a p-value lies between 0 and 1, got {bad[0]}")
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def paired_difference(b: int, c: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval of (b - c) / n, the difference of two rates over the same n (Tango 1998, Stat. Med. 17:891).

    Args:
        b: pairs with the first alone.
        c: pairs with the second alone.
        n: all pairs.
        level: coverage.

    Raises:
        ValueError: negative counts, or more discordant pairs than pairs, or no pairs.
    """
    if min(b, c) < 0 or b + c > n or n == 0:
        raise ValueError(f"paired counts need b, c >= 0, b + c <= n and n > 0, got b={b}, c={c}, n={n}")
    z = quantile(level)
    estimate = (b - c) / n
    # The statistic falls in delta, so each bound is where it crosses z or -z, or the end of [-1, 1].
    low = -1.0 if b - c == -n else _crossing(lambda delta: _score(b, c, n, delta) - z, -1.0, estimate)
    high = 1.0 if b - c == n else _crossing(lambda delta: _score(b, c, n, delta) + z, estimate, 1.0)
    return Interval(low, high)


def _score(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic for a true difference ``delta``: standard normal, with the variance restricted to it."""
    linear = -b - c + (2 * n - b + c) * delta
    root = sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta)))
    second_alone = (root - linear) / (4 * n)  # probability of such a pair, its maximum likelihood given delta
    variance = n * (2 * second_alone + delta * (1 - delta))
    gap = b - c - n * delta
    if variance <= 0:
        return 0.0 if gap == 0 else float("inf") * gap
    return gap / sqrt(variance)


def _crossing(falls: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is zero, by halving; an end where it has no zero."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) > 0 else (low, middle)
    return (low + high) / 2
