"""A committed baseline of runs: a folder with the rows' verdicts and numbers, and why each update was made."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.cards.yaml_file import show
from harness.errors import UserError
from harness.metrics.regression import ALL, SIGNIFICANT, Compared, columns_of, faults, smallest_change, snapshot
from harness.report.run_comparison import judged
from harness.report.stored_run import read_run
from harness.store.files import write_atomically
from harness.store.shards import read

ROWS, HISTORY = "rows.parquet", "history.json"


class Update(NamedTuple):
    """One line of a baseline's history."""

    date: str  # ISO, UTC
    reason: str
    harness: str  # version
    commands: list[str]  # of the runs
    changed: list[str]  # what differed from the baseline before beyond chance


def of_runs(folders: Sequence[Path]) -> tuple[pa.Table, list[str]]:
    """The rows of complete runs as a baseline keeps them, and the commands that made them.

    Raises:
        UserError: a run is incomplete or damaged, or two of them hold the same cell.
    """
    parts, commands = [], []
    owners: dict[tuple[str, ...], str] = {}
    for folder in folders:
        run = read_run(folder)
        main = {concept: chosen[0] for concept, chosen in run.policies.items() if chosen}
        scores = read(folder / "scores.parquet")
        rows = judged(scores, main)
        extra = [name for name in scores.column_names if name not in rows.column_names]
        whole = _beside(rows, scores.select([*_KEY, *extra]))
        part = snapshot(whole, columns_of([cell.to_json() for cell in run.cells]))
        for cell in set(zip(*(part[name].to_pylist() for name in ("bench", "defense", "variant")), strict=True)):
            if owners.setdefault(cell, folder.name) != folder.name:
                raise UserError(f"{' / '.join(cell)} is in {owners[cell]} and in {folder.name}: name one of them")
        parts.append(part)
        commands.append(str(run.record.get("command", folder.name)))
    return pa.concat_tables(parts, promote_options="default"), commands


_KEY = ("bench", "row_id", "sample", "defense", "variant")


def _beside(rows: pa.Table, others: pa.Table) -> pa.Table:
    """``rows`` with the columns of ``others``, matched by key."""
    ordered = [table.sort_by([(name, "ascending") for name in _KEY]) for table in (rows, others)]
    if not ordered[0].select(_KEY).equals(ordered[1].select(_KEY)):
        raise UserError("a run has rows of concepts that it has no policy for; a baseline holds judged rows only")
    joined = ordered[0]
    for name in others.column_names:
        if name not in joined.column_names:
            joined = joined.append_column(name, ordered[1][name])
    return joined


def load(folder: Path) -> tuple[pa.Table, list[Update]]:
    """A baseline's rows and history.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        rows = pq.read_table(folder / ROWS)
        history = [Update(**entry) for entry in json.loads((folder / HISTORY).read_text(encoding="utf-8"))]
    except FileNotFoundError as error:
        raise UserError(
            f"no baseline at {folder} ({error.filename} is missing): make one with "
            f"`harness baseline update RUN --baseline {folder} --reason ...`"
        ) from None
    except (OSError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise UserError(f"{show(folder)}: not a baseline ({error})") from None
    return rows, history


def save(folder: Path, rows: pa.Table, history: Sequence[Update]) -> None:
    """Write rows and history, each file whole or not at all; the same rows give the same bytes."""
    file = io.BytesIO()
    ordered = rows.sort_by([(name, "ascending") for name in _KEY])
    pq.write_table(ordered.replace_schema_metadata(None), file, compression="zstd")
    write_atomically(folder / ROWS, file.getvalue())
    entries = [update._asdict() for update in history]
    write_atomically(folder / HISTORY, (json.dumps(entries, ensure_ascii=False, indent=1) + "\n").encode())


def merged(before: pa.Table, after: pa.Table) -> pa.Table:
    """``after``, and the cells of ``before`` that it does not have."""
    cells = set(zip(*(after[name].to_pylist() for name in _CELL), strict=True))
    keep = [cell not in cells for cell in zip(*(before[name].to_pylist() for name in _CELL), strict=True)]
    return pa.concat_tables([after, before.filter(pa.array(keep, pa.bool_()))], promote_options="default")


_CELL = ("bench", "defense", "variant")


def text(compared: Sequence[Compared], new: Sequence[tuple[str, str, str]], history: Sequence[Update]) -> str:
    """The comparison for a terminal: what fails, what flipped without failing, what is new, and what could be seen."""
    failed = faults(compared)
    tested = [one for one in compared if one.before is not None]
    lines = [f"FAILED {one}" for one in failed]
    moved = [one for one in tested if one.fault is None and one.before != one.after and one.bench != ALL]
    lines += [f"within chance: {one}" for one in moved]
    lines += [f"new, not compared: {defense}/{variant} over {bench}" for bench, defense, variant in new]
    rows = sorted({one.rows for one in tested if one.is_rate and one.bench != ALL})
    if rows:
        least = smallest_change(rows[-1], len(tested))
        seen = f"{least} one-way flips" if least else "not even all rows flipping"
        lines.append(f"of {rows[-1]} rows in a cell, {seen} would fail (Holm over {len(tested)} tests, {SIGNIFICANT})")
    since = f", baseline of {history[-1].date}: {history[-1].reason}" if history else ""
    lines.append(f"{len(failed)} of {len(compared)} comparisons failed{since}")
    return "\n".join(lines)


def to_json(compared: Sequence[Compared], new: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "failed": len(faults(compared)),
        "compared": [one.to_json() for one in compared],
        "new": [list(cell) for cell in new],
    }


def count_rows(rows: pa.Table) -> int:
    """How many rows have a verdict."""
    return int(pc.sum(pc.is_valid(rows["unsafe"])).as_py() or 0)
