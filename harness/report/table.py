"""A paper's table, filled from all runs of a folder, each cell with the printed value beside it.

A cell stands for one (defense, variant, benchmark). What was measured comes from the newest complete run
that used the whole benchmark (beside a printed number: as many rows as it is of); without one, from the newest
that used a part, stamped as such and compared with nothing. Only the ``paper`` profile's numbers are put beside
printed ones.
"""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.cards.report import REFERENCE, Place, ReportCard, Row, printed_count
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest
from harness.metrics import cells
from harness.metrics.cells import Cell
from harness.metrics.comparison import NONE
from harness.metrics.corrections import Correction, of_run
from harness.metrics.corrections import Place as Labelled
from harness.metrics.intervals import newcombe
from harness.report.corrections import short
from harness.report.text import counts, interval, percent

Status = Literal["reproduced", "differs", "infeasible as printed", "not run", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the table. The printed side is null beside another profile than ``paper``."""

    defense: str
    variant: str
    bench: str
    measured: Cell | None
    run: str | None  # that it was measured in
    candidates: int  # runs that have this cell
    printed: str | None
    printed_k: int | None  # of the column's n; null when no k gives the printed number
    printed_n: int | None
    status: Status | None  # null beside another profile
    difference: tuple[float, float] | None  # measured less printed, Newcombe's 95% interval, in [-1, 1]
    marks: str  # letters of the footnotes
    true: Correction | None = None  # the measured rate as people's labels correct it; null: uncorrected

    def text(self, number: int | None = None) -> list[str]:
        """The cell's lines: measured, its interval, printed, how they compare.

        Args:
            number: of the run, see ``Table.legend``.
        """
        lines = []
        if self.measured is not None:
            lines = [f"{counts(self.measured)} {percent(self.measured.value)} #{number}", interval(self.measured)]
            if self.true is not None and self.true.rate is not None:
                lines.append(short(self.true.rate, self.true.labels.labelled))
            if self.measured.subset:
                lines.append(f"subset {self.measured.subset}")
            elif self.printed_n not in (None, _rows(self.measured)):
                lines.append(f"{_rows(self.measured)} rows, not {self.printed_n}")
            if self.measured.errors or self.measured.excluded:
                lines.append(f"{self.measured.errors} err, {self.measured.excluded} excl")
        if self.status is None:
            return lines or ["—"]
        printed = "not in the text" if self.printed is None else f"paper {self.printed}"
        lines.append(printed + (f" ({self.marks})" if self.marks else ""))
        return [*lines, "infeasible" if self.status == "infeasible as printed" else self.status]

    def to_json(self) -> dict[str, Any]:
        measured = None if self.measured is None else self.measured.to_json()
        true = None if self.true is None else self.true.to_json()
        return {**vars(self), "measured": measured, "marks": list(self.marks), "true": true}


class Line(NamedTuple):
    """One line of the table, ready to print."""

    group: str
    left: list[str]  # label and ticks
    entries: list[list[str]]  # lines of each cell
    statuses: list[Status | None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A report card with its entries, in the card's order."""

    card: ReportCard
    profile: str
    folder: Path  # of the runs
    runs: tuple[str, ...]  # complete ones found there
    commands: Mapping[str, str]  # that gave them; of runs whose record says it
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        return self.card.title

    def stamp(self) -> str:
        """Which models and which policy the numbers are of."""
        source = self.card.profiles[self.profile]
        return f"profile {self.profile}: backbone {source.backbone}, policy {source.policy}"

    def head(self) -> list[str]:
        """The columns' labels."""
        return ["method", *_TICKS, *(column.label for column in self.card.columns)]

    def lines(self) -> Iterator[Line]:
        """From top to bottom."""
        width, numbers = len(self.card.columns), self._numbers()
        starts = iter(range(0, len(self.entries), width))
        for row in self.card.rows:
            for variant in self.card.variants:
                start = next(starts)
                entries = self.entries[start : start + width]
                texts = [entry.text(numbers.get(entry.run or "")) for entry in entries]
                left = [self._label(row, variant), *self._ticks(row, variant)]
                yield Line(row.group, left, texts, [entry.status for entry in entries])

    def _numbers(self) -> dict[str, int]:
        """The runs that cells come from, numbered from 1."""
        used = dict.fromkeys(entry.run for entry in self.entries if entry.run)
        return {run: i for i, run in enumerate(used, 1)}

    def _label(self, row: Row, variant: str) -> str:
        """As in the paper, but for the undefended model of another profile, which is not the paper's."""
        own = self.card.variants[variant]
        if own is not None:
            return own
        if row.defense == NONE and self.profile != REFERENCE:
            return f"undefended, backbone {self.card.profiles[self.profile].backbone}"
        return row.label + (f" ({row.citation})" if row.citation else "")

    def _ticks(self, row: Row, variant: str) -> list[str]:
        group = self.card.groups[row.group]
        own = self.card.variants[variant] is not None
        return ["" if own else _TICKS_OF[tick] for tick in (group.no_weight_change, group.training_free)]

    def footnotes(self) -> list[str]:
        """The card's notes, lettered; they are about printed values, so other profiles have none."""
        if self.profile != REFERENCE:
            return []
        return [f"({_letter(i)}) {note.text}" for i, note in enumerate(self.card.notes)]

    def legend(self) -> list[str]:
        """What the numbers are, and where they come from."""
        complete = f"{len(self.runs)} complete runs" if self.runs else "no complete runs"
        lines = [f"{self.card.caption}; k/n, 95% interval, #run", f"{complete} in {show(self.folder.absolute())}"]
        for run, number in self._numbers().items():
            lines.append(f"#{number} {run}" + (f": {self.commands[run]}" if run in self.commands else ""))
        corrected = sum(e.true is not None and e.true.rate is not None for e in self.entries)
        lines.append(
            f"rates are uncorrected, as if the detector never erred, but for the {corrected} cells that say true "
            "(from people's labels: harness judge export RUN --task unsafe)"
        )
        lines.append(f"a missing cell: harness eval --defense NAME --bench NAME --profile {self.profile}")
        if self.profile != REFERENCE:
            return [f"Numbers of profile {self.profile}, not of the paper's models: its values are not shown.", *lines]
        counted = {s: sum(e.status == s for e in self.entries) for s in _LEGEND}
        return [*(f"{status} ({counted[status]}): {text}" for status, text in _LEGEND.items()), *lines]

    def to_json(self) -> dict[str, Any]:
        """The table as plain data."""
        source = self.card.profiles[self.profile]
        return {
            "report": self.card.name,
            "title": self.card.title,
            "caption": self.card.caption,
            "profile": self.profile,
            "backbone": source.backbone,
            "policy": source.policy,
            "metric": self.card.metric,
            "runs": list(self.runs),
            "commands": dict(self.commands),
            "notes": self.footnotes(),
            "cells": [entry.to_json() for entry in self.entries],
        }

    def to_csv(self) -> str:
        """One line per cell; empty where there is nothing."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        titles = [*_CSV_OWN, *_CSV_MEASURED, *_CSV_TRUE, *_CSV_PRINTED, *_CSV_DIFFERENCE]
        writer.writerow(["report", "profile", *titles, "fingerprints"])
        for entry in self.entries:
            measured = [getattr(entry.measured, name, None) for name in _CSV_MEASURED]
            own, printed = ([getattr(entry, name) for name in names] for names in (_CSV_OWN, _CSV_PRINTED))
            low, high = entry.difference or (None, None)
            stages = " ".join(entry.measured.fingerprints) if entry.measured else None
            true = (entry.true and entry.true.rate) or (None, None, None)
            writer.writerow([self.card.name, self.profile, *own, *measured, *true, *printed, low, high, stages])
        return file.getvalue()


_TICKS = ("weights kept", "no training")
_TICKS_OF = {True: "✓", False: "✗", None: "—"}
_CSV_OWN = ("defense", "variant", "bench", "run")
_CSV_MEASURED = ("backbone", "policy", "k", "n", "value", "low", "high", "interval", "errors", "excluded", "subset")
_CSV_TRUE = ("true", "true_low", "true_high")  # empty: uncorrected
_CSV_PRINTED = ("printed", "printed_k", "printed_n", "status", "marks")
_CSV_DIFFERENCE = ("difference_low", "difference_high")
_LEGEND: dict[Status, str] = {
    "reproduced": "the 95% interval of the difference from the printed k/n contains 0 (Newcombe)",
    "differs": "it does not",
    "infeasible as printed": "no k/n gives the printed number, or its column is in doubt (see the notes)",
    "not run": "no complete run has the cell",
    "not compared": "not the paper's number of rows was run, nothing was scored, or the text does not show the number",
}


def assemble(card: ReportCard, runs_dir: Path, profile: str) -> Table:
    """Fill ``card`` from every complete run below ``runs_dir``.

    Args:
        runs_dir: holds a folder per run (cells.json); it may be absent.
        profile: one that the card names.

    Raises:
        UserError: the card has nothing for ``profile``, or a run's cells cannot be read.
    """
    if profile not in card.profiles:
        raise UserError(
            f"report {card.name!r} is not declared for profile {profile!r} "
            f"(it has: {', '.join(card.profiles)}){nearest(profile, card.profiles)}; see {show(card.path)}"
        )
    runs = _runs(runs_dir)
    by_place: dict[Place, list[tuple[_Run, Cell]]] = {}
    for run in runs:
        for cell in run.cells:
            if _belongs(cell, card, profile):
                by_place.setdefault((cell.defense, cell.variant, cell.bench), []).append((run, cell))
    entries = tuple(_entry(card, profile, place, by_place.get(place, [])) for place in card.places())
    return Table(
        card=card,
        profile=profile,
        folder=runs_dir,
        runs=tuple(run.name for run in runs),
        commands={run.name: run.command for run in runs if run.command},
        entries=entries,
    )


@dataclass(frozen=True)
class _Run:
    name: str
    finished: float  # Unix seconds
    command: str | None  # null where the run's record does not say
    cells: list[Cell]
    corrections: Mapping[Labelled, Correction]  # of the cells that have labels


def _runs(folder: Path) -> list[_Run]:
    """Complete runs: a run writes its cells last, when every shard is there."""
    paths = sorted(folder.glob("*/cells.json"))
    return [
        _Run(p.parent.name, p.stat().st_mtime, _command(p.with_name("run.json")), cells.read(p), of_run(p.parent))
        for p in paths
    ]


def _command(record: Path) -> str | None:
    try:
        command = json.loads(record.read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command if isinstance(command, str) else None


def _belongs(cell: Cell, card: ReportCard, profile: str) -> bool:
    """A cell run under another seed, backbone, policy or concept than the cards' is another number."""
    source = card.profiles[profile]
    wanted = (profile, source.backbone, source.policy, card.metric)
    return (cell.profile, cell.backbone, cell.policy, cell.metric) == wanted and not cell.settings


def _entry(card: ReportCard, profile: str, place: Place, candidates: list[tuple[_Run, Cell]]) -> Entry:
    beside = profile == REFERENCE
    printed = card.number(place) if beside else None
    size = next(c.n for c in card.columns if c.bench == place[2])

    def rank(one: tuple[_Run, Cell]) -> tuple[bool, bool, float]:
        whole = one[1].subset is None
        return whole and (not beside or _rows(one[1]) == size), whole, one[0].finished

    run, cell = max(candidates, key=rank, default=(None, None))
    k = None if printed is None else printed_count(printed, size)
    status: Status | None = None
    difference = None
    if beside:
        status, difference = _compare(cell, k, size, card.infeasible(place))
    return Entry(
        defense=place[0],
        variant=place[1],
        bench=place[2],
        measured=cell,
        run=run.name if run else None,
        candidates=len(candidates),
        printed=printed,
        printed_k=k,
        printed_n=size if beside else None,
        status=status,
        difference=difference,
        marks="".join(_letter(i) for i in card.notes_of(place)) if beside else "",
        true=_correction(run, cell) if run and cell else None,
    )


def _correction(run: _Run, cell: Cell) -> Correction | None:
    """What labels make of a cell; those of other images, as before a run was repeated with more rows, do not count."""
    correction = run.corrections.get((cell.bench, f"{cell.defense}/{cell.variant}", str(cell.policy)))
    if correction is None or (correction.group.flagged, correction.group.n) != (cell.k, cell.n):
        return None
    return correction


def _compare(cell: Cell | None, k: int | None, n: int, infeasible: bool) -> tuple[Status, tuple[float, float] | None]:
    if infeasible:
        return "infeasible as printed", None
    if cell is None:
        return "not run", None
    if k is None or cell.k is None or cell.subset or not cell.n or _rows(cell) != n:
        return "not compared", None
    # Copies of an image are one observation, here and in the printed number, which is of the same prompts.
    single = (cell.clusters or cell.n) / cell.n
    low, high = newcombe(single * cell.k, single * cell.n, single * k, single * n)
    return ("reproduced" if low <= 0 <= high else "differs"), (low, high)


def _rows(cell: Cell) -> int:
    """Rows of the benchmark, whatever became of them."""
    return cell.n + cell.errors + cell.excluded


def _letter(index: int) -> str:
    return string.ascii_lowercase[index]
