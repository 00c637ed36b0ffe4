"""A measured number beside a printed one: do they agree, do they differ, or can so few rows not say?

Counts are compared by Newcombe's 95% interval of the difference. An interval that holds 0 shows no difference; it shows
agreement only if it also lies within ``AGREEMENT`` of 0, which takes some hundreds of rows.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal, NamedTuple

from harness.metrics.cells import Cell
from harness.metrics.intervals import newcombe

Status = Literal[
    "reproduced", "not told apart", "differs", "infeasible as printed", "not run", "not compared", "no such cell"
]
AGREEMENT = 0.05  # of a share 5 points; of a mean, which all lie in a range of about 1, 0.05
LEGEND: dict[Status, str] = {
    "reproduced": f"the 95% interval of the difference from the printed number lies within {100 * AGREEMENT:g} points "
    f"(of a mean {AGREEMENT:g}) of 0, and contains it",
    "not told apart": "the interval contains 0 and is wider than that: so many rows cannot say whether the two agree",
    "differs": "the interval does not contain 0",
    "infeasible as printed": "no k/n gives the printed number, or its column is in doubt (see the notes)",
    "not run": "no complete run has the cell",
    "not compared": "not the paper's number of rows was run, nothing was scored, the text does not show the number or "
    "of how many images it is, or it is of another machine",
}


class Difference(NamedTuple):
    """Measured less printed, with its 95% interval; of shares in [-1, 1]."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def status(self) -> Status:
        if not self.low <= 0 <= self.high:
            return "differs"
        return "reproduced" if self.low >= -AGREEMENT and self.high <= AGREEMENT else "not told apart"


def rows_of(cell: Cell) -> int:
    """Rows of the benchmark, whatever became of them."""
    return cell.n + cell.errors + cell.excluded


def of_count(cell: Cell, k: int, n: int) -> Difference | None:
    """A measured count beside the printed k of n; null where nothing was scored."""
    if cell.k is None or not cell.n:
        return None
    # Copies of an image are one observation, here and in the printed number, which is of the same prompts.
    single = (cell.clusters or cell.n) / cell.n
    low, high = newcombe(single * cell.k, single * cell.n, single * k, single * n)
    return Difference(cell.k / cell.n - k / n, low, high)


def of_mean(cell: Cell, printed: float, n: int) -> Difference | None:
    """A measured mean beside a printed one, which is taken to be as uncertain as so many of the measured values."""
    if cell.value is None or cell.low is None or cell.high is None:
        return None
    wider = sqrt(1 + cell.n / n)
    value = cell.value - printed
    return Difference(value, value - wider * (cell.value - cell.low), value + wider * (cell.high - cell.value))
