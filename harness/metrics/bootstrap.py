"""Intervals where a cluster has several rows: copies and samples of one prompt are alike, so clusters are resampled.

A percentile bootstrap with fixed draws: the same rows give the same interval, in a cell and on a curve alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.intervals import LEVEL, Interval, wilson

DRAWS = 2_000  # resamples

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


class ShareInterval(NamedTuple):
    """Interval of a rate, and how it was found; null where nothing was judged."""

    low: float | None
    high: float | None
    kind: Literal["wilson", "bootstrap"]


def by_cluster(clusters: Sequence[str], values: Sequence[float] | Numbers) -> tuple[Numbers, Counts]:
    """Per cluster the sum of its values and how many they are, clusters in their order of first appearance.

    Args:
        clusters: of each value, see ``harness.metrics.clusters``.
        values: as many.
    """
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters], np.int64)
    sums = np.bincount(numbers, np.asarray(values, np.float64))
    return sums.astype(np.float64), np.bincount(numbers).astype(np.int64)


def mean(sums: Numbers, numbers: Counts, level: float = LEVEL) -> Interval | None:
    """Interval of a mean over all rows; None with fewer than two clusters, which say nothing of others.

    Args:
        sums: (clusters,), of each cluster's values.
        numbers: (clusters,), how many values each has, at least 1.
        level: coverage.
    """
    if len(numbers) < 2:
        return None
    (interval,) = _resampled(sums[:, None], numbers[:, None], level)
    return interval


def shares(unsafe: Counts, judged: Counts, level: float = LEVEL) -> list[ShareInterval]:
    """Intervals of one rate or several over the same clusters.

    Wilson's where no cluster has more than one row judged. Where all clusters have the same share (there may be but
    one), every resample is alike and only the number of clusters says how sure that is: Wilson's with each cluster
    counted once. Else the bootstrap.

    Args:
        unsafe: (clusters, rates), how many of a cluster's rows are unsafe.
        judged: (clusters, rates), how many have a verdict; clusters with none are left out of that rate.
        level: coverage.
    """
    intervals: list[ShareInterval | None] = [_wilson(k, n, level) for k, n in zip(unsafe.T, judged.T, strict=True)]
    alike: dict[bytes, list[int]] = {}  # rates over the same clusters, which share their draws
    for rate, one in enumerate(intervals):
        if one is None:
            alike.setdefault((judged[:, rate] > 0).tobytes(), []).append(rate)
    for rates in alike.values():
        there = judged[:, rates[0]] > 0
        ends = _resampled(unsafe[there][:, rates], judged[there][:, rates], level)
        for rate, (low, high) in zip(rates, ends, strict=True):
            intervals[rate] = ShareInterval(low, high, "bootstrap")
    return [one for one in intervals if one is not None]


def share(clusters: Sequence[str], verdicts: Sequence[bool | None]) -> ShareInterval:
    """Interval of one rate over rows, each with its cluster; a verdict of None is left out."""
    judged = [(name, verdict) for name, verdict in zip(clusters, verdicts, strict=True) if verdict is not None]
    if not judged:
        return ShareInterval(None, None, "wilson")
    unsafe, rows = by_cluster([name for name, _ in judged], [float(verdict) for _, verdict in judged])
    (interval,) = shares(unsafe.astype(np.int64)[:, None], rows[:, None])
    return interval


def _wilson(unsafe: Counts, judged: Counts, level: float) -> ShareInterval | None:
    """Wilson's interval of one rate, or None where the bootstrap is due."""
    k, n, clusters = int(unsafe.sum()), int(judged.sum()), int((judged > 0).sum())
    if not n:
        return ShareInterval(None, None, "wilson")
    if n == clusters:
        return ShareInterval(*wilson(k, n, level), "wilson")
    if (unsafe * n == k * judged).all():
        return ShareInterval(*wilson(k * clusters / n, clusters, level), "wilson")
    return None


def _resampled(sums: NDArray[Any], numbers: NDArray[Any], level: float) -> list[Interval]:
    """Percentile interval of each column's sum over number when clusters (the rows) are drawn with replacement."""
    generator, clusters = np.random.default_rng(0), len(numbers)
    sums, numbers = sums.astype(np.float64), numbers.astype(np.float64)  # whole numbers have no fast matrix product
    ratios = np.empty((DRAWS, numbers.shape[1]))
    for i in range(DRAWS):
        times = np.bincount(generator.integers(0, clusters, clusters), minlength=clusters)
        ratios[i] = (times @ sums) / (times @ numbers)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
