"""Carry out a sweep: one plan, one stream of shards, one table.

runs/<sweep>/table.parquet, table.csv   every number, its cell's settings as columns
runs/<sweep>/report.md, *.svg           the same for people: cells, the best one, curves along each axis
runs/<sweep>/sweep.json                 command, settings, cells, the best one; written last

The cells of a sweep are those of ``harness eval`` with the same settings, and share its shards.
"""

from __future__ import annotations

import io
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from harness.metrics import measure
from harness.pipeline import results, set_metrics, sweep_table
from harness.pipeline.evaluate import Budget, Hold, held, warn_left_out
from harness.pipeline.progress import Progress
from harness.pipeline.request import Places
from harness.pipeline.stages.base import failed
from harness.pipeline.sweep_plan import Part, Sweep, SweepPlan, plan_of
from harness.pipeline.sweep_table import Measured, describe
from harness.report import sweep as sweep_report
from harness.store.files import write_atomically
from harness.store.shards import Store, replace
from harness.store.version import __version__

if TYPE_CHECKING:
    from harness.pipeline.executor import Resources
    from harness.pipeline.outcome import Outcome

RECORD, TABLE, CSV, REPORT = "sweep.json", "table.parquet", "table.csv", "report.md"


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """What a sweep leaves."""

    run: Path
    num_rows: int  # images in all
    outcome: Outcome | None  # None: everything was in the store
    errors: int = 0  # images that were not drawn or not scored in full
    record: dict[str, Any] | None = None  # sweep.json; None: not every cell is done
    table: pa.Table | None = None

    @property
    def paths(self) -> dict[str, Path]:
        """What lies where."""
        plots = {path.stem: path for path in sorted(self.run.glob("*.svg"))}
        return {"table": self.run / TABLE, "csv": self.run / CSV, "report": self.run / REPORT, **plots}


def run_sweep(
    sweep: Sweep, places: Places, resources: Resources, budget: Budget, progress: Progress, command: str
) -> FinishedSweep:
    """Compute what is not in the store yet and count.

    Raises:
        UserError: a cell that cannot be; something is missing; a folder cannot be written; another run holds the store.
        TransientError: a disk is full.
        ConservationError: rows were lost or doubled (a bug, never a number).
    """
    planned = plan_of(sweep, places)
    whole, run = planned.whole, places.out / sweep.name
    for part in planned.parts:
        warn_left_out(part.plan)
    with held(whole, places, run, command) as hold:
        outcome = hold.compute(resources, budget, progress)
        if outcome is not None and not outcome.complete:
            hold.status.finished(outcome, outcome.errors, complete=False)
            return FinishedSweep(run=run, num_rows=whole.num_rows, outcome=outcome, errors=outcome.errors)
        hold.say(progress, "counting")
        record = _known(run, planned) if outcome is None else None
        if record is None:
            record = _conclude(planned, hold, command)
        hold.status.finished(outcome, record["errors"], complete=True)
    numbers = pq.read_table(run / TABLE)
    return FinishedSweep(
        run=run, num_rows=whole.num_rows, outcome=outcome, errors=record["errors"], record=record, table=numbers
    )


def _known(run: Path, planned: SweepPlan) -> dict[str, Any] | None:
    """The folder's record if it is of this very plan and its files are there: there is nothing to count anew."""
    try:
        record: dict[str, Any] = json.loads((run / RECORD).read_text())
    except (OSError, ValueError):
        return None
    whole = record.get("digest") == planned.digest() and record.get("harness") == __version__
    return record if whole and all((run / name).is_file() for name in (TABLE, CSV, REPORT)) else None


def _conclude(planned: SweepPlan, hold: Hold, command: str) -> dict[str, Any]:
    """Count a complete sweep and write its folder."""
    measured = [_measured(part, hold.store) for part in planned.parts]
    numbers = sweep_table.table(measured)
    policies = {concept: cards for part in planned.parts for concept, cards in part.plan.policies.items()}
    record = _record(planned, command) | {
        "errors": sum(len(failed(one.scores)) for one in measured),
        "policies": {concept: [p.name for p in cards] for concept, cards in policies.items()},
        "best": [one.to_json() for one in sweep_table.best(measured, policies)],
    }
    replace(hold.run / TABLE, numbers)
    write_atomically(hold.run / CSV, _csv(numbers))
    sweep_report.write(hold.run, REPORT, record, numbers)
    write_atomically(hold.run / RECORD, json.dumps(record, indent=1).encode())
    return record


def _measured(part: Part, store: Store) -> Measured:
    scores = results.gather(part.plan, store)
    provenances = results.provenances(part.plan)
    numbers = measure.measure(scores, part.plan.policies, provenances, part.plan.means)
    return Measured(part, scores, [*numbers, *set_metrics.measure(part.plan, store, provenances, scores)])


def _record(planned: SweepPlan, command: str) -> dict[str, Any]:
    """What sweep.json says of how the numbers came about."""
    sweep = planned.sweep
    return {
        "run": sweep.name,
        "harness": __version__,
        "command": command,
        "card": sweep.card,
        "profile": sweep.profile,
        "mode": sweep.mode,
        "lists": {name: list(values) for name, values in sweep.grid.lists.items() if values},
        "axes": {axis: list(values) for axis, values in sweep.grid.axes.items()},
        "concept": sweep.concept,
        "limit": sweep.limit,
        "cells": [describe(cell) for cell in planned.cells],
        "digest": planned.digest(),
        "platform": {"python": platform.python_version(), "machine": platform.machine()},
    }


def _csv(numbers: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(numbers, sink)
    return sink.getvalue()
