"""A paper's table, filled from all runs of a folder, each cell with the printed value beside it.

A cell stands for one (row, variant, column) of the report's card. What was measured comes from the newest complete run
that used the whole benchmark (beside a printed number: as many rows as it is of); without one, from the newest
that used a part, stamped as such and compared with nothing. Only the ``paper`` profile's numbers are put beside
printed ones.
"""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.cards.policy import PolicyCard
from harness.cards.report import Column, Group, Place, ReportCard, Row, Sought
from harness.cards.yaml_file import show
from harness.data.concepts import is_shapes_world
from harness.errors import UserError, nearest
from harness.metrics.cells import ASR, Cell
from harness.metrics.comparison import NONE
from harness.metrics.corrections import Correction
from harness.report import text, verdict
from harness.report.entry import Entry
from harness.report.recount import recount
from harness.report.run_cells import Key, Run, key_of, key_sought, read_runs, shown_as
from harness.report.verdict import LEGEND, Difference, Status, rows_of


class Line(NamedTuple):
    """One line of the table, ready to print."""

    group: str
    left: list[str]  # label and ticks
    entries: list[list[str]]  # lines of each cell
    statuses: list[Status | None]


class Origin(NamedTuple):
    """What some cells of one run come from."""

    run: str
    number: int  # of the run, see ``Table.legend``
    method: str  # DEFENSE/VARIANT, and its backbone
    benches: tuple[str, ...]
    fingerprints: tuple[str, ...]  # of the stages

    def __str__(self) -> str:
        return f"#{self.number} {self.method}, {', '.join(self.benches)}: {' '.join(self.fingerprints)}"


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
        policy = "" if source.policy is None else f", policy {source.policy}"
        return f"profile {self.profile}: backbone {source.backbone}{policy}"

    def warnings(self) -> list[str]:
        """What nobody may overlook: another world's numbers, and parts of benchmarks."""
        lines = []
        if is_shapes_world(self.profile) or is_shapes_world(self.card.profiles[self.profile].backbone):
            lines.append(
                "SHAPES WORLD: a small synthetic stand-in, not the paper's models; the numbers say nothing of Stable "
                "Diffusion"
            )
        elif self.profile != self.card.reference:
            lines.append(f"PROFILE {self.profile}: not the paper's models")
        subsets = sorted(
            {f"{e.measured.subset} rows of {e.bench}" for e in self.entries if e.measured and e.measured.subset}
        )
        if subsets:
            lines.append(f"SUBSET: {', '.join(subsets)}; cells of a subset stand beside no printed number")
        return lines

    def head(self) -> list[str]:
        """The columns' labels."""
        return ["method", *self._tick_labels(), *(column.label for column in self.card.columns)]

    def lines(self) -> Iterator[Line]:
        """From top to bottom; a line without a cell that the paper or the profile's world has is left out."""
        width, numbers = len(self.card.columns), self.numbers()
        starts = iter(range(0, len(self.entries), width))
        for row in self.card.rows:
            for variant in self.card.variants:
                start = next(starts)
                entries = self.entries[start : start + width]
                if all(entry.sought is None for entry in entries):
                    continue
                texts = [entry.text(numbers.get(entry.run or "")) for entry in entries]
                left = [self._label(row, variant), *self._ticks(row, variant)]
                yield Line(row.group, left, texts, [entry.status for entry in entries])

    def numbers(self) -> dict[str, int]:
        """The runs that cells come from, numbered from 1."""
        used = dict.fromkeys(entry.run for entry in self.entries if entry.run)
        return {run: i for i, run in enumerate(used, 1)}

    def _label(self, row: Row, variant: str) -> str:
        """As in the paper, but for the undefended model of another profile, which is not the paper's."""
        own = self.card.variants[variant]
        if own is not None:
            return own
        source = self.card.profiles[self.profile]
        if self.profile != self.card.reference and (row.defense == NONE or row.backbone):
            backbone = source.names.get(row.backbone, row.backbone) if row.backbone else source.backbone
            return f"undefended, backbone {backbone}"
        return row.label + (f" ({row.citation})" if row.citation else "")

    def _tick_labels(self) -> list[str]:
        """The paper's left columns, where a group says anything of them."""
        return list(_TICKS) if any(_ticks_of(group) != [None, None] for group in self.card.groups.values()) else []

    def _ticks(self, row: Row, variant: str) -> list[str]:
        if not self._tick_labels():
            return []
        own = self.card.variants[variant] is not None
        return ["" if own else _TICKS_OF[tick] for tick in _ticks_of(self.card.groups[row.group])]

    def footnotes(self) -> list[str]:
        """The card's notes, lettered; they are about printed values, so other profiles have none."""
        if self.profile != self.card.reference:
            return []
        return [f"({_letter(i)}) {note.text}" for i, note in enumerate(self.card.notes)]

    def legend(self) -> list[str]:
        """What the numbers are, and where they come from."""
        complete = f"{len(self.runs)} complete runs" if self.runs else "no complete runs"
        lines = [f"{self.card.caption}; 95% interval, #run", f"{complete} in {show(self.folder.absolute())}"]
        for run, number in self.numbers().items():
            lines.append(f"#{number} {run}" + (f": {self.commands[run]}" if run in self.commands else ""))
        if any(entry.sought and entry.sought.metric in ("asr", "fsr") for entry in self.entries):
            corrected = sum(e.true is not None and e.true.rate is not None for e in self.entries)
            lines.append(
                f"rates are uncorrected, as if the detector never erred, but for the {corrected} cells that say true "
                "(from people's labels: harness judge export RUN --task unsafe)"
            )
        if any(entry.measured and entry.measured.bounds for entry in self.entries):
            lines.append(f"lost: {text.LOST}")
        lines.append(f"missing cells: harness reproduce {self.card.name} --profile {self.profile}")
        if self.profile != self.card.reference:
            return [f"Numbers of profile {self.profile}, not of the paper's models: its values are not shown.", *lines]
        counted = {status: sum(e.status == status for e in self.entries) for status in LEGEND}
        return [*(f"{status} ({n}): {LEGEND[status]}" for status, n in counted.items() if n), *lines]

    def origins(self) -> list[Origin]:
        """Of the cells of each run and method the stages' fingerprints."""
        numbers = self.numbers()
        by_origin: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for entry in self.entries:
            if entry.run and entry.measured:
                method = f"{entry.defense}/{entry.variant} on {entry.measured.backbone}"
                by_origin.setdefault((entry.run, method, entry.measured.fingerprints), []).append(entry.bench)
        return [
            Origin(run, numbers[run], method, tuple(dict.fromkeys(benches)), fingerprints)
            for (run, method, fingerprints), benches in by_origin.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The table as plain data."""
        source = self.card.profiles[self.profile]
        return {
            "report": self.card.name,
            "title": self.card.title,
            "caption": self.card.caption,
            "profile": self.profile,
            "warnings": self.warnings(),
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
        titles = [*_CSV_OWN, *_CSV_MEASURED, *_CSV_BOUNDS, *_CSV_TRUE, *_CSV_PRINTED, *_CSV_DIFFERENCE]
        writer.writerow(["report", "profile", *titles, "fingerprints", "command"])
        for entry in self.entries:
            measured = [getattr(entry.measured, name, None) for name in _CSV_MEASURED]
            own, printed = ([getattr(entry, name) for name in names] for names in (_CSV_OWN, _CSV_PRINTED))
            stages = " ".join(entry.measured.fingerprints) if entry.measured else None
            bounds = (entry.measured and entry.measured.bounds) or (None, None)
            true = (entry.true and entry.true.rate) or (None, None, None)
            difference = (*entry.difference, entry.difference.half) if entry.difference else (None,) * 4
            ends = (stages, self.commands.get(entry.run or ""))
            writer.writerow(
                [self.card.name, self.profile, *own, *measured, *bounds, *true, *printed, *difference, *ends]
            )
        return file.getvalue()


_TICKS = ("weights kept", "no training")
_TICKS_OF = {True: "✓", False: "✗", None: "—"}
_CSV_OWN = ("row", "column", "defense", "variant", "bench", "run")
_CSV_MEASURED = (
    "backbone", "metric", "scorer", "policy", "reference", "k", "n", "value", "low", "high", "interval", "errors",
    "excluded", "lost", "subset",
)  # fmt: skip
_CSV_BOUNDS = ("low_if_lost_safe", "high_if_lost_unsafe")
_CSV_TRUE = ("true", "true_low", "true_high")  # empty: uncorrected
_CSV_PRINTED = ("printed", "printed_k", "printed_n", "status", "marks")
_CSV_DIFFERENCE = ("difference", "difference_low", "difference_high", "half_width")


def _ticks_of(group: Group) -> list[bool | None]:
    return [group.no_weight_change, group.training_free]


def assemble(card: ReportCard, runs_dir: Path, profile: str, policy: PolicyCard | None = None) -> Table:
    """Fill ``card`` from every complete run below ``runs_dir``.

    Args:
        card: what goes where.
        runs_dir: holds a folder per run (cells.json); it may be absent.
        profile: one that the card names.
        policy: counts the stored scores anew, in place of the card's; None: the card's, as the runs were counted.

    Raises:
        UserError: the card has nothing for ``profile``, or a run's cells cannot be read.
    """
    runs = read_runs(runs_dir)
    if policy is not None:
        card = card.by_policy(policy.name)
        runs = [replace(run, cells=_recounted(run, runs_dir, policy)) for run in runs]
    return Table(
        card=card,
        profile=profile,
        folder=runs_dir,
        runs=tuple(run.name for run in runs),
        commands={run.name: run.command for run in runs if run.command},
        entries=fill(card, runs, profile),
    )


def _recounted(run: Run, runs_dir: Path, policy: PolicyCard) -> list[Cell]:
    """The run's cells, its rates by ``policy`` alone."""
    others = [cell for cell in run.cells if cell.metric != ASR]
    return [*others, *recount(runs_dir / run.name, run.cells, policy)]


def fill(card: ReportCard, runs: Sequence[Run], profile: str) -> tuple[Entry, ...]:
    """The card's cells from these runs, in its order.

    Raises:
        UserError: the card has nothing for ``profile``.
    """
    if profile not in card.profiles:
        raise UserError(
            f"report {card.name!r} is not declared for profile {profile!r} "
            f"(it has: {', '.join(card.profiles)}){nearest(profile, card.profiles)}; see {show(card.path)}"
        )
    by_key: dict[Key, list[tuple[Run, Cell]]] = {}
    for run in runs:
        for cell in run.cells:
            if not cell.settings:  # under another seed or concept than the cards' it is another number
                by_key.setdefault(key_of(cell), []).append((run, cell))
    return tuple(_entry(card, profile, place, by_key) for place in card.places())


def _entry(card: ReportCard, profile: str, place: Place, by_key: Mapping[Key, Sequence[tuple[Run, Cell]]]) -> Entry:
    beside = profile == card.reference
    column, sought = card.column(place[2]), card.sought(place, profile)
    candidates = by_key.get(key_sought(sought, profile), []) if sought else []

    def rank(one: tuple[Run, Cell]) -> tuple[bool, bool, float]:
        whole = one[1].subset is None
        return whole and (not beside or column.n in (None, rows_of(one[1]))), whole, one[0].finished

    run, cell = max(candidates, key=rank, default=(None, None))
    shown = shown_as(cell, sought) if cell and sought else None
    status, difference = _compare(card, place, shown) if beside else (None, None)
    return Entry(
        row=place[0],
        column=place[2],
        defense=sought.defense if sought else card.row(place[0]).defense,
        variant=sought.variant if sought else place[1],
        bench=sought.bench if sought else column.bench,
        sought=sought,
        measured=shown,
        run=run.name if run else None,
        candidates=len(candidates),
        printed=card.number(place) if beside else None,
        printed_k=card.count(place) if beside else None,
        printed_n=column.n if beside else None,
        status=status,
        difference=difference,
        marks="".join(_letter(i) for i in card.notes_of(place)) if beside else "",
        true=_correction(run, cell, sought) if run and cell and sought else None,
    )


def _correction(run: Run, cell: Cell, sought: Sought) -> Correction | None:
    """What labels make of a cell; those of other images, as before a run was repeated with more rows, do not count."""
    correction = run.corrections.get((cell.bench, f"{cell.defense}/{cell.variant}", str(cell.policy)))
    if sought.metric != "asr" or correction is None:
        return None
    return correction if (correction.group.flagged, correction.group.n) == (cell.k, cell.n) else None


def _compare(card: ReportCard, place: Place, cell: Cell | None) -> tuple[Status, Difference | None]:
    """How a measured number stands beside the one printed in its place."""
    if card.is_blank(place):
        return "no such cell", None
    if card.infeasible(place):
        return "infeasible as printed", None
    if cell is None:
        return "not run", None
    difference = _difference(card, place, card.column(place[2]), cell)
    return (difference.status, difference) if difference else ("not compared", None)


def _difference(card: ReportCard, place: Place, column: Column, cell: Cell) -> Difference | None:
    number, k = card.number(place), card.count(place)
    if number is None or column.n is None or cell.subset or rows_of(cell) != column.n:
        return None
    if k is not None:
        return verdict.of_count(cell, k, column.n)
    return verdict.of_mean(cell, float(number), column.n)


def _letter(index: int) -> str:
    return string.ascii_lowercase[index]
