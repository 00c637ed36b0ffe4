"""What a paired comparison of a planned size can show, before anything is spent on it.

Two methods draw from the same n prompts; only the flips tell them apart (``harness.metrics.paired``). With exact
McNemar and Holm over m comparisons the smallest p must reach level / m, which is what a difference is planned for.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.paired import mcnemar_exact

LEVEL = 0.05
POWER = 0.8
_STEPS = 20  # halvings of a difference: to 1e-6


class Planned(NamedTuple):
    """What n rows can show."""

    n: int
    tests: int  # comparisons that Holm adjusts for
    flips: int  # all one way, that are significant
    smallest_seen: float | None  # flips / n: a smaller observed difference never is; null: nothing can be
    smallest_true: float | None  # true difference found with POWER, if nothing flips the other way
    smallest_noisy: float | None  # the same where `back` of the rows flip the other way
    back: float


def planned(n: int, tests: int, back: float = 0.05, level: float = LEVEL, power: float = POWER) -> Planned:
    """What a comparison over n rows can show when it is one of several.

    Args:
        n: rows with one image each; prompts, where some have several.
        tests: comparisons adjusted for, at least 1.
        back: share of rows that flip against the difference, for ``smallest_noisy``.
        level: of all comparisons together.
        power: chance to find a true difference.

    Raises:
        ValueError: no rows, no tests, or a share outside [0, 1).
    """
    if n < 1 or tests < 1 or not 0 <= back < 1:
        raise ValueError(f"planning needs rows, tests and 0 <= back < 1, got n={n}, tests={tests}, back={back}")
    flips = fewest_flips(level / tests)
    clean, noisy = (smallest_difference(n, share, level / tests, power) for share in (0.0, back))
    return Planned(n, tests, flips, flips / n if flips <= n else None, clean, noisy, back)


def fewest_flips(level: float) -> int:
    """How many flips, all one way, McNemar's exact test needs: the least b with 2 / 2^b <= level.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, got {level}")
    guess = max(1, ceil(1 - log(level, 2)))
    return guess - 1 if guess > 1 and mcnemar_exact(0, guess - 1) <= level else guess


def smallest_difference(n: int, back: float, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true difference of two rates over the same n rows that McNemar's exact test finds with ``power``.

    Args:
        n: rows.
        back: share of rows that flip against the difference.
        level: of the test.
        power: chance to reject.

    Returns:
        The difference as a share; null where even the largest, 1 - 2 back, is found less often.
    """
    low, high = 0.0, max(0.0, 1 - 2 * back)
    if chance_to_find(n, back + high, back, level) < power:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = chance_to_find(n, back + middle, back, level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def chance_to_find(n: int, forth: float, back: float, level: float = LEVEL) -> float:
    """Power of McNemar's exact test, to the better side: over all numbers of flips, exactly.

    Args:
        n: rows.
        forth: probability that a row flips for the better.
        back: that it flips the other way.
        level: of the two-sided test.

    Raises:
        ValueError: probabilities that are none, or add up to more than 1.
    """
    if min(forth, back) < 0 or forth + back > 1 + 1e-12:
        raise ValueError(f"flips both ways are shares that add up to 1 at most, got {forth} and {back}")
    total = min(1.0, forth + back)
    if not total:
        return 0.0
    weights = _binomial(n, total, n)
    likely = np.flatnonzero(weights > 1e-13)
    return float(sum(weights[d] * _rejected(int(d), forth / total, level) for d in likely))


def _rejected(flips: int, share: float, level: float) -> float:
    """Chance that so many of ``flips`` go forth that the test rejects."""
    allowed = _most_back(flips, level)
    return 0.0 if allowed < 0 else float(_binomial(flips, 1 - share, allowed).sum())


@lru_cache(maxsize=100_000)
def _most_back(flips: int, level: float) -> int:
    """The most flips back of ``flips`` with which the test still rejects; -1: none at all is too few."""
    tail = np.cumsum(_binomial(flips, 0.5, flips // 2))
    return int(np.searchsorted(2 * tail, level * (1 + 1e-9), side="right")) - 1 if flips else -1


def _binomial(n: int, p: float, most: int) -> NDArray[np.float64]:
    """Probabilities of 0 to ``most`` out of n."""
    k = np.arange(most + 1)
    if p in (0.0, 1.0):
        return np.where(k == n * p, 1.0, 0.0)
    log_factorial = _log_factorials(1 << n.bit_length())
    logs = log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * log(p) + (n - k) * log(1 - p)
    probabilities: NDArray[np.float64] = np.exp(logs)
    return probabilities


@lru_cache(maxsize=8)
def _log_factorials(up_to: int) -> NDArray[np.float64]:
    """Logarithms of 0! to ``up_to``!."""
    logs: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, up_to + 1)))])
    return logs
