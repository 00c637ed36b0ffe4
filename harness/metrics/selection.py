"""The best of several cells on the same rows, and what choosing it by those rows does to its number.

The lowest of many noisy rates is too low: part of what made it lowest is luck that does not come again. How much is
estimated by choosing anew from resampled prompts (the bootstrap's optimism: Efron and Tibshirani 1993, chapter 17): how
much lower the chosen cell's rate is where it was chosen than over all rows. Beside it stand an interval that holds for
all cells at once (Bonferroni), hence for whichever was chosen, and the cells that are not told apart from the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.bootstrap import DRAWS, shares
from harness.metrics.intervals import LEVEL, Interval
from harness.metrics.paired import holm, swapped_clusters

_SEED = 42


class Selection(NamedTuple):
    """The cell with the lowest rate over the rows that every cell has a verdict for."""

    best: int  # its index; the first of several as low
    k: int
    n: int
    interval: Interval  # of its rate, as if it had been the only one
    joint: Interval  # that all cells' rates lie in theirs with 95%: the chosen one's is among them
    optimism: float  # how much too low its rate is expected to be, having been chosen by it
    chosen: float  # in what share of resamples the same cell is chosen
    tied: tuple[int, ...]  # others not told apart from it: exact paired test, Holm over the others, 5%

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**self._asdict(), "interval": list(self.interval), "joint": list(self.joint), "tied": list(self.tied)}


def select(unsafe: NDArray[np.bool_], clusters: Sequence[str], level: float = LEVEL) -> Selection:
    """Choose the lowest rate.

    Args:
        unsafe: (cells, rows), verdicts over the same rows.
        clusters: of each row, see ``harness.metrics.clusters``; rows of one are drawn together.
        level: coverage of the intervals.

    Raises:
        ValueError: no cells, or no rows.
    """
    cells, rows = unsafe.shape
    if not cells or not rows:
        raise ValueError(f"nothing to choose from: {cells} cells over {rows} rows")
    sums, sizes = _by_cluster(unsafe, clusters)
    totals = sums.sum(axis=1)
    best = int(totals.argmin())
    others = [i for i in range(cells) if i != best]
    ps = holm([swapped_clusters((sums[i] - sums[best]).tolist()) for i in others])
    optimism, chosen = _optimism(sums, sizes, best)
    return Selection(
        best=best,
        k=int(totals[best]),
        n=rows,
        interval=_interval(sums[best], sizes, level),
        joint=_interval(sums[best], sizes, 1 - (1 - level) / cells),
        optimism=optimism,
        chosen=chosen,
        tied=tuple(i for i, p in zip(others, ps, strict=True) if p > 1 - level),
    )


def _by_cluster(unsafe: NDArray[np.bool_], clusters: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Unsafe rows of each cell by cluster (cells, clusters), and how many rows each cluster has."""
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(name, len(codes)) for name in clusters], np.int64)
    member = np.zeros((len(numbers), len(codes)), np.int64)
    member[np.arange(len(numbers)), numbers] = 1
    return unsafe.astype(np.int64) @ member, member.sum(axis=0)


def _interval(sums: NDArray[np.int64], sizes: NDArray[np.int64], level: float) -> Interval:
    (share,) = shares(sums[:, None], sizes[:, None], level)
    assert share.low is not None
    assert share.high is not None
    return Interval(share.low, share.high)


def _optimism(sums: NDArray[np.int64], sizes: NDArray[np.int64], best: int) -> tuple[float, float]:
    """Expected gap between a chosen cell's rate over all rows and where it was chosen; how often ``best`` is chosen.

    Where several cells are as low in a resample, each of them counts for a share.
    """
    generator = np.random.default_rng(_SEED)
    weights = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    drawn = (weights @ sums.T) / (weights @ sizes)[:, None]  # (draws, cells)
    lowest = drawn.min(axis=1, keepdims=True)
    shared = (drawn <= lowest + 1e-12).astype(np.float64)
    shared /= shared.sum(axis=1, keepdims=True)
    rates = sums.sum(axis=1) / sizes.sum()
    gaps = shared @ rates - lowest[:, 0]
    return max(float(gaps.mean()), 0.0), float(shared[:, best].mean())
