"""A complete run read back from its folder, and shown again in any format without its store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from harness.cards.policy import PolicyCard
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest
from harness.metrics import cells as cell_files
from harness.metrics.cells import Cell, Policies
from harness.metrics.corrections import of_run
from harness.metrics.cost import Cost
from harness.report import latex, markdown, terminal
from harness.report.html.run import RunPage
from harness.store.recorded import image_shards
from harness.store.shards import read

_PLAIN_WIDTH = 120  # characters a line of text that goes into a file or a pipe


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What a run's folder says of it; its images lie in the store."""

    folder: Path
    record: Mapping[str, Any]  # run.json
    cells: Sequence[Cell]
    costs: Sequence[Cost]
    policies: Policies  # as they were when the run was counted


def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        UserError: there is no complete run at ``folder`` (with those that lie beside it), or run.json is damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        return record
    except OSError:
        others = sorted(p.parent.name for p in folder.parent.glob("*/run.json")) if folder.parent.is_dir() else []
        message = f"no finished run at {folder} (in {folder.parent}: {', '.join(others) or 'none'})"
        raise UserError(message + nearest(folder.name, others)) from None
    except ValueError as error:
        raise UserError(f"{path} is not readable: {error}; run the eval again") from None


def read_run(folder: Path) -> StoredRun:
    """All that a run's folder says, without its scores.

    Raises:
        UserError: there is no complete run, or a file of it is damaged, which is named.
    """
    record = read_record(folder)
    place = {"path": folder / "run.json", "root": folder}  # of a card: where it was read
    try:
        policies = {
            concept: tuple(PolicyCard.model_validate({**policy, **place}) for policy in chosen)
            for concept, chosen in record["policies"].items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{show(folder / 'run.json')}: not the record of a run ({error}); run the eval again") from None
    return StoredRun(
        folder=folder,
        record=record,
        cells=cell_files.read(folder / "cells.json"),
        costs=_costs(folder / "costs.json"),
        policies=policies,
    )


def _costs(path: Path) -> list[Cost]:
    """What the images took; empty for a run of before costs were kept."""
    try:
        return [Cost.from_json(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{show(path)}: not the costs of a run ({error}); run the eval again") from None


def run_page(run: StoredRun, store: Path, published: Sequence[PolicyCard], with_prompts: bool = False) -> RunPage:
    """What the run's HTML file is made of: its folder and, where the store holds them, its images.

    Args:
        run: read back.
        store: the store's folder.
        published: other papers' policies, whose cut-offs are marked.
        with_prompts: put prompts, captions and names of imported files into the page.

    Raises:
        UserError: the scores are not there.
    """
    path = run.folder / "scores.parquet"
    try:
        scores = read(path)
        shards = image_shards(run.record, store)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"{show(path)}: not the scores of a run ({error}); run the eval again") from None
    return RunPage(
        record=run.record,
        cells=run.cells,
        costs=run.costs,
        policies=run.policies,
        scores=scores,
        image_shards=shards,
        published=published,
        corrections=list(of_run(run.folder).values()),
        with_prompts=with_prompts,
    )


def render_run(run: StoredRun, form: str) -> str:
    """The run's numbers as text.

    Args:
        form: one of ``RUN_FORMATS``.

    Raises:
        UserError: another form.
    """
    if form not in RUN_FORMATS:
        raise UserError(f"unknown format {form!r}{nearest(form, RUN_FORMATS)} (there are: {', '.join(RUN_FORMATS)})")
    return RUN_FORMATS[form](run)


def _terminal(run: StoredRun) -> str:
    console = Console(file=io.StringIO(), width=_PLAIN_WIDTH)
    with console.capture() as captured:
        terminal.show(run.cells, run.policies, {"run": run.folder}, console)
    return captured.get().rstrip()


def _markdown(run: StoredRun) -> str:
    return markdown.render(run.cells, run.record, run.costs).rstrip()


def _csv(run: StoredRun) -> str:
    """A line per cell; what is nested (method, settings, reasons, comparison) is JSON."""
    rows = [cell.to_json() for cell in run.cells]
    file = io.StringIO()
    writer = csv.DictWriter(file, ["run", *dict.fromkeys(name for row in rows for name in row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for k, v in row.items()}
        writer.writerow({"run": run.record.get("run", run.folder.name), **plain})
    return file.getvalue().rstrip()


def _json(run: StoredRun) -> str:
    kept = {name: run.record.get(name) for name in ("run", "harness", "command", "profile", "backbone", "policies")}
    cells = [cell.to_json() for cell in run.cells]
    return json.dumps({**kept, "cells": cells, "costs": [c.to_json() for c in run.costs]}, ensure_ascii=False, indent=1)


RUN_FORMATS: dict[str, Callable[[StoredRun], str]] = {
    "terminal": _terminal,
    "md": _markdown,
    "latex": lambda run: latex.run_fragment(run.cells, run.record),
    "csv": _csv,
    "json": _json,
}
