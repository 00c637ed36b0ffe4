"""What a complete run leaves in its folder: a list of writers, each given the same contents.

A new output is one function and one entry of ``WRITERS``. Writers run in order; ``cells.json`` says that a run is
complete and ``run.json`` what its files were made from, so that ``run.json`` is written last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from harness.cards.load import load_cards
from harness.cards.policy import PolicyCard
from harness.metrics import cells as cell_files
from harness.metrics.cells import Cell, Policies
from harness.metrics.corrections import of_run
from harness.metrics.cost import Cost
from harness.report import contact_sheet, markdown
from harness.store.files import write_atomically
from harness.store.shards import replace


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """All that a complete run knows, for its writers."""

    folder: Path
    scores: pa.Table  # schema SCORE, all conditions; without images
    cells: Sequence[Cell]
    costs: Sequence[Cost]
    record: Mapping[str, Any]  # run.json
    policies: Policies
    image_shards: Sequence[Path]
    roots: Sequence[Path]  # of cards: other papers' policies are marked on the curves
    is_repeated: bool = False  # nothing was computed, and the folder holds this very run already


class Write(Protocol):
    """Writes one output into the run's folder, whole or not at all."""

    def __call__(self, run: RunContents, path: Path) -> None:
        """Write ``path``."""
        ...


class RunWriter(NamedTuple):
    """One output of a run."""

    file: str  # within the run's folder
    write: Write


def write_all(run: RunContents) -> None:
    """Have every writer write its file."""
    for writer in WRITERS:
        writer.write(run, run.folder / writer.file)


def _scores(run: RunContents, path: Path) -> None:
    replace(path, run.scores)


def _cells(run: RunContents, path: Path) -> None:
    cell_files.write(path, run.cells)


def _costs(run: RunContents, path: Path) -> None:
    write_atomically(path, json.dumps([cost.to_json() for cost in run.costs], indent=1).encode())


def _report(run: RunContents, path: Path) -> None:
    write_atomically(path, markdown.render(run.cells, run.record, run.costs).encode())


def _page(run: RunContents, path: Path) -> None:
    if run.is_repeated and path.exists():  # a page takes about a second, and a repeated run has three
        return
    from harness.report.html.run import RunPage, page

    contents = RunPage(
        record=run.record,
        cells=run.cells,
        costs=run.costs,
        policies=run.policies,
        scores=run.scores,
        image_shards=run.image_shards,
        published=load_cards(PolicyCard, run.roots),
        corrections=list(of_run(run.folder).values()),
    )
    write_atomically(path, page(contents).encode())


def _contact_sheet(run: RunContents, path: Path) -> None:
    if not (run.is_repeated and path.exists()):  # decoding images takes seconds, and a repeated run has three
        contact_sheet.write(path, run.scores, run.image_shards, run.policies)


def _record(run: RunContents, path: Path) -> None:
    write_atomically(path, json.dumps(run.record, indent=1).encode())


WRITERS: tuple[RunWriter, ...] = (
    RunWriter("scores.parquet", _scores),
    RunWriter("cells.json", _cells),
    RunWriter("costs.json", _costs),
    RunWriter("report.md", _report),
    RunWriter("report.html", _page),
    RunWriter("contact.png", _contact_sheet),
    RunWriter("run.json", _record),
)
