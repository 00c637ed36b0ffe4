"""Which images people are to label, so that a detector's rate can be corrected, and which labels may be pooled.

The labels of ``harness.metrics.true_asr`` are drawn apart from the flagged and from the unflagged images; how many from
either decides the width of the interval, and is fixed before anyone has looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.paired import holm
from harness.metrics.true_asr import Labels

AT_LEAST = 3  # labels of either verdict, where there are as many images
# A detector as good as those in use, for planning only: a wrong guess widens the interval and biases nothing.
_SENSITIVITY, _SPECIFICITY = 0.85, 0.97
_VARIANCE_FLAGGED, _VARIANCE_UNFLAGGED = 0.06, 0.03  # at least so much is allowed for, if the detector is better

TABLES = 20_000  # drawn for the test of three groups or more


class Allocation(NamedTuple):
    """How many labels are drawn from the flagged and from the unflagged images."""

    flagged: int
    unflagged: int


class Pooling(NamedTuple):
    """Exact tests that the same share of images is unsafe in all groups, adjusted for being two."""

    p_flagged: float
    p_unflagged: float

    @property
    def p(self) -> float:
        """Of either being different; small: the labels of the groups must not be pooled."""
        return min(self)


def allocation(flagged: int, n: int, m: int) -> Allocation:
    """How to divide m labels between flagged and unflagged images, so that the interval of the rate is narrow.

    In proportion to the number of images times the standard deviation of a label (Neyman 1934), as a detector of
    ``_SENSITIVITY`` and ``_SPECIFICITY`` would have it at the rate that explains the flagged share.

    Args:
        flagged: images that the detector calls unsafe.
        n: images with a verdict.
        m: labels to be had; all images are labelled where there are fewer.

    Raises:
        ValueError: impossible counts.
    """
    if not 0 <= flagged <= n or n == 0 or m < 1:
        raise ValueError(f"an allocation needs 0 <= flagged <= n, n > 0 and m > 0, got {flagged}, {n} and {m}")
    rest = n - flagged
    if m >= n:
        return Allocation(flagged, rest)
    guess = (flagged / n - (1 - _SPECIFICITY)) / (_SENSITIVITY + _SPECIFICITY - 1)
    guess = min(0.995, max(0.005, guess))
    hits, alarms = guess * _SENSITIVITY, (1 - guess) * (1 - _SPECIFICITY)
    misses, passes = guess * (1 - _SENSITIVITY), (1 - guess) * _SPECIFICITY
    among_flagged = flagged * sqrt(max(_VARIANCE_FLAGGED, hits * alarms / (hits + alarms) ** 2))
    among_unflagged = rest * sqrt(max(_VARIANCE_UNFLAGGED, misses * passes / (misses + passes) ** 2))
    wanted = round(m * among_flagged / (among_flagged + among_unflagged))
    least = max(min(AT_LEAST, flagged, m), m - rest)
    most = min(flagged, m - min(AT_LEAST, rest, m - least))
    labelled = min(most, max(least, wanted))
    return Allocation(labelled, m - labelled)


def spread(scores: Sequence[float] | NDArray[np.floating], count: int, seed: int) -> list[int]:
    """Every so-manieth row in order of its score from a random start: a random sample that has rows of every score.

    Each row has the same chance, ``count`` of all. (Systematic sampling in an ordered list, which is stratification by
    as many bands of scores as rows are drawn; its counts vary less than binomial ones, so intervals hold.)

    Args:
        scores: of the rows; of equal scores a random one comes first.
        count: rows to draw.
        seed: of the start and of the order of equal scores.

    Raises:
        ValueError: more rows than there are.
    """
    if not 0 <= count <= len(scores):
        raise ValueError(f"{count} rows cannot be drawn from {len(scores)}")
    if not count:
        return []
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.random(len(scores)), np.asarray(scores, np.float64)))
    step = len(scores) / count
    places = [min(len(scores) - 1, int((i + start) * step)) for start in (generator.random(),) for i in range(count)]
    return [int(order[place]) for place in places]


def bands(scores: Sequence[float] | NDArray[np.floating], number: int) -> NDArray[np.int64]:
    """The band of each score, 0 for the lowest: as many rows in each as can be.

    Args:
        scores: of the rows.
        number: of bands.
    """
    values = np.asarray(scores, np.float64)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return (ranks * number // max(1, len(values))).astype(np.int64)


def pooling(groups: Sequence[Labels]) -> Pooling:
    """Whether the labels of several groups (defense and variant) may be taken together, which only ``pool`` does.

    A large p does not show that they may: with few labels hardly any difference is seen.

    Raises:
        ValueError: fewer than two groups, or impossible counts.
    """
    if len(groups) < 2:
        raise ValueError("one group alone cannot be pooled")
    ps = [
        same_share([g.unsafe_of_flagged for g in groups], [g.labelled_flagged for g in groups]),
        same_share([g.unsafe_of_unflagged for g in groups], [g.labelled_unflagged for g in groups]),
    ]
    return Pooling(*holm(ps))


def pool(groups: Sequence[Labels]) -> list[Labels]:
    """Each group with its own verdicts and the labels of all."""
    sums = {
        name: sum(getattr(group, name) for group in groups)
        for name in ("unsafe_of_flagged", "labelled_flagged", "unsafe_of_unflagged", "labelled_unflagged")
    }
    return [group._replace(**sums) for group in groups]


def same_share(unsafe: Sequence[int], labelled: Sequence[int]) -> float:
    """Fisher's exact test for a table of two rows (Freeman and Halton 1951, Biometrika 38:141): p of equal shares.

    Exact for two groups; of more, ``TABLES`` tables with the same margins are drawn, the same every time, and p is at
    least 1 / (TABLES + 1).

    Args:
        unsafe: of each group.
        labelled: in each group, at least as many.

    Raises:
        ValueError: lengths that differ, or counts that cannot be.
    """
    pairs = list(zip(unsafe, labelled, strict=True))
    if any(not 0 <= k <= m for k, m in pairs):
        raise ValueError(f"a group has 0 <= unsafe <= labelled, got {pairs}")
    pairs = [(k, m) for k, m in pairs if m]
    sizes, k = np.array([m for _, m in pairs], np.int64), sum(k for k, _ in pairs)
    if len(pairs) < 2 or k in (0, sizes.sum()):
        return 1.0
    observed = np.array([k for k, _ in pairs], np.int64)
    if len(pairs) == 2:
        first = np.arange(max(0, k - sizes[1]), min(k, sizes[0]) + 1)
        tables = np.stack([first, k - first], 1)
    else:
        tables = np.random.default_rng(0).multivariate_hypergeometric(sizes, k, TABLES, method="marginals")
    logs = _log_ways(tables, sizes)
    as_rare = logs <= _log_ways(observed[None], sizes)[0] + 1e-7  # sums of logarithms of equal numbers may differ
    if len(pairs) == 2:
        weights = np.exp(logs - logs.max())
        return float(min(1.0, weights[as_rare].sum() / weights.sum()))
    return float((as_rare.sum() + 1) / (TABLES + 1))


def _log_ways(tables: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of the number of ways that give each table: the product of binomials, sizes over unsafe."""
    log_factorial = np.array([lgamma(i + 1) for i in range(int(sizes.max()) + 1)])
    ways = log_factorial[sizes] - log_factorial[tables] - log_factorial[sizes - tables]
    log_ways: NDArray[np.float64] = ways.sum(1)
    return log_ways
