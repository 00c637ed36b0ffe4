"""Before a number is given: the rows that went in are there, once, and each met one outcome."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.metrics.cells import ResultGroup
from harness.metrics.comparison import Mask
from harness.store.schema import KEY

_EXAMPLES = 3  # rows named in a complaint


class ConservationError(AssertionError):
    """Rows got lost, doubled or counted in two ways; no number may be given."""


class RowOutcomes(NamedTuple):
    """What became of each row of a group."""

    verdicts: pa.Array  # bool or number, null where there is none
    errored: Mask
    excluded: Mask

    @property
    def scored(self) -> Mask:
        return present(self.verdicts)


def present(column: pa.Array | pa.ChunkedArray) -> Mask:
    """Where a value is."""
    return np.asarray(pc.is_valid(column).to_numpy(zero_copy_only=False), bool)


def check_outcomes(group: ResultGroup, what: str, outcome: RowOutcomes) -> None:
    """Each row is scored, errored or excluded, in exactly one way.

    Raises:
        ConservationError: naming rows that are not.
    """
    ways = outcome.scored.astype(int) + outcome.errored + outcome.excluded
    faults = {"neither scored, errored nor excluded": ways == 0, "counted in two ways": ways > 1}
    violations = [
        f"{int(mask.sum())} {how} (such as {_examples(group.rows.filter(pa.array(mask)))})"
        for how, mask in faults.items()
        if mask.any()
    ]
    if violations:
        raise ConservationError(
            f"{group}, {what}: of {len(ways)} rows {int(outcome.scored.sum())} are scored, "
            f"{int(outcome.errored.sum())} errored, {int(outcome.excluded.sum())} excluded; {' and '.join(violations)}"
        )


def check_rows(group: ResultGroup, expected: pa.Table) -> None:
    """The group's rows are those that went in.

    Raises:
        ConservationError: naming rows that were lost, and rows that are not of this run.
    """
    keys = ["row_id", "sample"]
    came = group.rows.select(keys)
    lost = expected.select(keys).join(came, keys, join_type="left anti").sort_by("row_id")
    strange = came.join(expected.select(keys), keys, join_type="left anti").sort_by("row_id")
    if lost.num_rows or strange.num_rows:
        faults = {"lost": lost, "not of this run": strange}
        what = [f"{t.num_rows} {how} (such as {_examples(t)})" for how, t in faults.items() if t.num_rows]
        raise ConservationError(
            f"{group}: {expected.num_rows} rows went in and {came.num_rows} came out; {' and '.join(what)}"
        )


def check_once(scores: pa.Table) -> None:
    """No row is there twice.

    Raises:
        ConservationError: naming one that is.
    """
    counted = scores.group_by(["profile", "backbone", *KEY]).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted["count_all"], 1))
    if twice.num_rows:
        example = twice.select(list(KEY)).slice(0, 1).to_pylist()[0]
        raise ConservationError(
            f"{twice.num_rows} rows are there more than once, such as {example} ({twice['count_all'][0].as_py()} times)"
        )


def check_groups(there: Set[tuple[str, str, str]], known: Mapping[tuple[str, str, str], int]) -> None:
    """Each (defense, variant, benchmark) that rows went into has some.

    Args:
        there: those of the table.
        known: how many rows went in.

    Raises:
        ConservationError: naming one that has none.
    """
    for (defense, variant, bench), rows in known.items():
        if rows and (defense, variant, bench) not in there:
            raise ConservationError(f"{defense}/{variant} on {bench}: {rows} rows went in and none came out")


def _examples(rows: pa.Table) -> str:
    ids = rows["row_id"].to_pylist()[:_EXAMPLES]
    return ", ".join(ids) + (", ..." if rows.num_rows > _EXAMPLES else "")
