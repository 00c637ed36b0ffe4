"""Two runs over the same rows, row by row: which verdicts flipped, and whether the rates differ.

Rows are the same when benchmark, row and sample are. The difference of two rates over the same rows is far better known
than from the two intervals: only flips count (exact McNemar; by prompt where prompts have several samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.metrics.bootstrap import mean
from harness.metrics.clusters import COLUMNS as CLUSTERED
from harness.metrics.clusters import Clusters, clusters
from harness.metrics.intervals import LEVEL, Interval
from harness.metrics.paired import holm, paired_difference, swapped_clusters

Method = tuple[str, str]  # defense, variant
COLUMNS = ("bench", "row_id", "sample", "defense", "variant", "unsafe")
ROW = ("bench", "row_id", "sample")


class Paired(NamedTuple):
    """One method of the first run beside one of the second, over one benchmark."""

    bench: str
    first: Method
    second: Method
    pairs: int  # rows that have a verdict in both
    unsafe_first: int  # of the pairs
    unsafe_second: int
    to_unsafe: tuple[tuple[str, int], ...]  # row and sample: safe in the first, unsafe in the second
    to_safe: tuple[tuple[str, int], ...]
    only_first: int  # rows with a verdict in the first run alone
    only_second: int
    p: float
    p_holm: float  # over all comparisons of the two runs
    low: float | None  # of the second rate less the first, 95%; null with fewer than two prompts of several samples
    high: float | None

    @property
    def difference(self) -> float | None:
        """The second rate less the first, over the pairs."""
        return (self.unsafe_second - self.unsafe_first) / self.pairs if self.pairs else None

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the difference."""
        return {**self._asdict(), "difference": self.difference}


def compare_runs(
    first: pa.Table, second: pa.Table, methods: Sequence[tuple[Method, Method]] | None = None, level: float = LEVEL
) -> list[Paired]:
    """Pairs of methods, benchmark by benchmark, in the order of the first run's rows.

    Args:
        first: ``COLUMNS``, where ``unsafe`` is a verdict, bool, null where there is none.
        second: likewise, of the other run.
        methods: which to compare, of the first and of the second run; see ``pairs_of_methods`` for the default.
        level: coverage of the intervals.

    Raises:
        ValueError: a column is missing or of another type, or a row is there twice.
    """
    for table in (first, second):
        _check(table)
    chosen = pairs_of_methods(methods_of(first), methods_of(second)) if methods is None else methods
    known = [table.select([n for n in CLUSTERED if n in table.column_names]) for table in (first, second)]
    names = clusters(pa.concat_tables(known, promote_options="default"))
    pairs = [paired for one, other in chosen for paired in _by_bench(first, second, (one, other), names, level)]
    return [paired._replace(p_holm=p) for paired, p in zip(pairs, holm([paired.p for paired in pairs]), strict=True)]


def pairs_of_methods(first: Sequence[Method], second: Sequence[Method]) -> list[tuple[Method, Method]]:
    """What of one run is compared with what of the other, unless asked otherwise.

    Methods of both runs with themselves; and where either run has just one defense that the other lacks, these with
    each other, variant by variant.
    """
    pairs = [(method, method) for method in first if method in second]
    only_first, only_second = _defenses_of_one(first, second), _defenses_of_one(second, first)
    if len(only_first) == len(only_second) == 1:
        (one,), (other,) = only_first, only_second
        pairs += [((one, v), (other, v)) for d, v in first if d == one and (other, v) in second]
    return pairs


def _defenses_of_one(methods: Sequence[Method], others: Sequence[Method]) -> set[str]:
    """Defenses that the other run lacks."""
    return {defense for defense, _ in methods} - {defense for defense, _ in others}


def _by_bench(
    first: pa.Table, second: pa.Table, methods: tuple[Method, Method], names: Clusters, level: float
) -> list[Paired]:
    """The two methods over each benchmark that both runs have."""
    left, right = _rows(first, methods[0]), _rows(second, methods[1])
    joined = left.join(right, list(ROW), join_type="full outer", right_suffix="_second").sort_by(
        [(name, "ascending") for name in ROW]
    )
    shared = [bench for bench in pc.unique(left["bench"]).to_pylist() if bench in set(right["bench"].to_pylist())]
    return [_paired(joined.filter(pc.equal(joined["bench"], bench)), bench, methods, names, level) for bench in shared]


def _paired(rows: pa.Table, bench: str, methods: tuple[Method, Method], names: Clusters, level: float) -> Paired:
    known = [np.asarray(pc.is_valid(rows[name])) for name in ("unsafe", "unsafe_second")]
    unsafe = [np.asarray(pc.fill_null(rows[name], False)) for name in ("unsafe", "unsafe_second")]
    both = known[0] & known[1]
    to_unsafe, to_safe = both & ~unsafe[0] & unsafe[1], both & unsafe[0] & ~unsafe[1]
    keys = list(zip(rows["row_id"].to_pylist(), rows["sample"].to_pylist(), strict=True))
    differences, samples = _by_cluster(
        [names[row] for row, _ in keys], to_unsafe.astype(int) - to_safe.astype(int), both
    )
    ends = _interval(differences, samples, int(to_unsafe.sum()), int(to_safe.sum()), level)
    p = swapped_clusters(differences.tolist())
    return Paired(
        bench, *methods, int(both.sum()), int((both & unsafe[0]).sum()), int((both & unsafe[1]).sum()),
        tuple(keys[i] for i in np.flatnonzero(to_unsafe)), tuple(keys[i] for i in np.flatnonzero(to_safe)),
        int((known[0] & ~known[1]).sum()), int((known[1] & ~known[0]).sum()),
        p, p, ends and ends.low, ends and ends.high,
    )  # fmt: skip


def _by_cluster(names: Sequence[str], differences: Any, both: Any) -> tuple[Any, Any]:
    """Per cluster with a pair: sum of the differences, and how many pairs."""
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
    pairs = np.bincount(numbers[both], minlength=len(codes))
    sums = np.bincount(numbers[both], differences[both], minlength=len(codes)).astype(np.int64)
    return sums[pairs > 0], pairs[pairs > 0]


def _interval(differences: Any, pairs: Any, forth: int, back: int, level: float) -> Interval | None:
    """Of the difference: Tango's, or by cluster where clusters have several pairs."""
    if not len(pairs):
        return None
    if (pairs == 1).all():
        return paired_difference(forth, back, int(pairs.sum()), level)
    return mean(differences.astype(np.float64), pairs, level)


def _rows(table: pa.Table, method: Method) -> pa.Table:
    mine = pc.and_(pc.equal(table["defense"], method[0]), pc.equal(table["variant"], method[1]))
    return table.filter(mine).select([*ROW, "unsafe"])


def methods_of(table: pa.Table) -> list[Method]:
    """The methods of a run, in its order."""
    return list(dict.fromkeys(zip(table["defense"].to_pylist(), table["variant"].to_pylist(), strict=True)))


def _check(table: pa.Table) -> None:
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(f"runs are compared by the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    if not pa.types.is_boolean(table["unsafe"].type):
        raise ValueError(f"a verdict is bool, got {table['unsafe'].type}")
    keys = [*ROW, "defense", "variant"]
    counted = table.group_by(keys).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted["count_all"], 1))
    if twice.num_rows:
        raise ValueError(f"a row is there more than once: {twice.select(keys).slice(0, 1).to_pylist()[0]}")
