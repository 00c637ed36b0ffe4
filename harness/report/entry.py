"""One cell of a paper's table: what was measured, what is printed, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.cards.report import Sought
from harness.metrics.cells import Cell
from harness.metrics.corrections import Correction
from harness.report.corrections import short
from harness.report.run_cells import SECONDS
from harness.report.text import bounds, counts, interval, percent
from harness.report.verdict import Difference, Status, rows_of


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the table. The printed side is null beside another profile than ``paper``."""

    row: str  # names within the card
    column: str
    defense: str  # as the profile's runs have it, like all below
    variant: str
    bench: str
    sought: Sought | None  # null: the profile's world, or the paper's table, has nothing there
    measured: Cell | None
    run: str | None  # that it was measured in
    candidates: int  # runs that have this cell
    printed: str | None
    printed_k: int | None  # of the column's n; null when no k gives the printed number
    printed_n: int | None
    status: Status | None  # null beside another profile
    difference: Difference | None  # from the printed number
    marks: str  # letters of the footnotes
    true: Correction | None = None  # the measured rate as people's labels correct it; null: uncorrected

    def text(self, number: int | None = None) -> list[str]:
        """The cell's lines: measured, its interval, printed, how they compare.

        Args:
            number: of the run, see ``Table.legend``.
        """
        lines = [] if self.measured is None else self._measured(self.measured, number)
        if self.status == "no such cell" or (self.sought is None and not lines):
            return ["·"]
        if self.status is None:
            return lines or ["—"]
        printed = "not in the text" if self.printed is None else f"paper {self.printed}"
        lines.append(printed + (f" ({self.marks})" if self.marks else ""))
        return [*lines, "infeasible" if self.status == "infeasible as printed" else self.status, *self._difference()]

    def _measured(self, cell: Cell, number: int | None) -> list[str]:
        lines = [f"{value(cell)} #{number}"]
        lines += [said for said in (spread(cell),) if said]
        if self.true is not None and self.true.rate is not None:
            lines.append(short(self.true.rate, self.true.labels.labelled))
        if cell.bounds is not None:
            lines.append(bounds(cell))
        if cell.subset:
            lines.append(f"subset {cell.subset}")
        elif self.printed_n not in (None, rows_of(cell)):
            lines.append(f"{rows_of(cell)} rows, not {self.printed_n}")
        if cell.errors or cell.excluded:
            lines.append(f"{cell.errors} err, {cell.excluded} excl")
        return lines

    def _difference(self) -> list[str]:
        if self.difference is None:
            return []
        if self.measured is not None and self.measured.k is None:
            return [f"{self.difference.value:+.3f} ±{self.difference.half:.3f}"]
        return [f"{100 * self.difference.value:+.1f} ±{100 * self.difference.half:.1f} points"]

    def to_json(self) -> dict[str, Any]:
        """The cell as plain data."""
        measured = None if self.measured is None else self.measured.to_json()
        sought = None if self.sought is None else self.sought._asdict()
        true = None if self.true is None else self.true.to_json()
        difference = None if self.difference is None else self.difference._asdict() | {"half": self.difference.half}
        changed = {"measured": measured, "sought": sought, "true": true, "difference": difference}
        return {**vars(self), **changed, "marks": list(self.marks)}


def value(cell: Cell) -> str:
    """``k/n p%``, seconds with the device, or a mean."""
    if cell.value is None:
        return f"{counts(cell)} —" if cell.k is not None else "—"
    if cell.k is not None:
        return f"{counts(cell)} {percent(cell.value)}"
    if cell.metric == SECONDS:
        return f"{cell.value:.2f} s ({cell.method.get('device', '?')})"
    return f"{cell.value:.4f}"


def spread(cell: Cell) -> str:
    """The 95% interval; of a mean also of how many."""
    if cell.k is not None:
        return interval(cell)
    ends = "" if cell.low is None or cell.high is None else f"[{cell.low:.4f}, {cell.high:.4f}] "
    return f"{ends}n {cell.n}"
