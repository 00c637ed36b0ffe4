"""A complete run's rates by any policy, straight from its Parquet: scores are stored, never verdicts.

A benchmark at a time, and of its columns only those that counts depend on, so that memory is bounded by the largest
benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.cards.policy import PolicyCard
from harness.cards.yaml_file import show
from harness.errors import UserError
from harness.metrics.cells import ASR, GROUP, Cell
from harness.metrics.clusters import COLUMNS as OF_CLUSTERS
from harness.metrics.measure import measure

_BATCH_ROWS = 32_768
_COLUMNS = (*GROUP, *OF_CLUSTERS, "sample", "excluded", "error", "degenerate")


def recount(folder: Path, counted: Sequence[Cell], policy: PolicyCard) -> Iterator[Cell]:
    """The run's attack success rates by ``policy``, benchmark by benchmark; of those whose scores have its columns.

    Args:
        folder: of a complete run.
        counted: the run's own cells, which say what else belongs to a number: fingerprints, settings, the subset.
        policy: whose unit is the image.

    Raises:
        UserError: the scores are not there, or not readable.
    """
    path = folder / "scores.parquet"
    try:
        names = pq.read_schema(path).names
        wanted = [clause_column for clause in policy.clauses for clause_column in clause.any_of]
        if any(column not in names for column in wanted):
            return
        errors = [f"{scorer}_error" for scorer in policy.scorers]
        columns = [name for name in dict.fromkeys((*_COLUMNS, *wanted, *errors)) if name in names]
        for rows in _benchmarks(path, columns):
            yield from _of_benchmark(rows, counted, policy)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{show(path)}: not the scores of a run ({error}); run the eval again") from None


def _benchmarks(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of each benchmark, as soon as the last of them is read; a run writes them one after another."""
    last = {bench: i for i, bench in enumerate(pq.read_table(path, columns=["bench"])["bench"].to_pylist())}
    collected: dict[str, list[pa.Table]] = {}
    done = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
            rows = pa.Table.from_batches([batch])
            for bench in rows["bench"].unique().to_pylist():
                collected.setdefault(bench, []).append(rows.filter(pc.equal(rows["bench"], bench)))
            done += rows.num_rows
            for bench in [name for name in collected if last[name] < done]:
                yield pa.concat_tables(collected.pop(bench)).combine_chunks()


def _of_benchmark(rows: pa.Table, counted: Sequence[Cell], policy: PolicyCard) -> Iterator[Cell]:
    own = {(c.defense, c.variant, c.bench): c for c in counted}
    policies = dict.fromkeys(rows["concept"].unique().to_pylist(), (policy,))
    for cell in measure(rows, policies):
        known = own.get((cell.defense, cell.variant, cell.bench))
        if cell.metric == ASR and known is not None:
            yield replace(
                cell,
                fingerprints=known.fingerprints,
                subset=known.subset,
                method=known.method,
                settings=known.settings,
                notes=known.notes,
            )
