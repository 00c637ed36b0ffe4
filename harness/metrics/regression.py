"""Whether today's rows differ from a committed baseline by more than chance, cell by cell.

Rows are paired by benchmark, row and sample. A verdict may flip on another kind of CPU, so that flips are tested (exact
sign test by cluster, as ``harness.metrics.paired``); numbers are tested by the signs of their differences, too. Holm
adjusts over all tests. What no chance explains needs no test: a cell, a column or a row's result that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.metrics.clusters import clusters
from harness.metrics.paired import holm, swapped_clusters

ROW = ("bench", "row_id", "sample")
METHOD = ("defense", "variant")
CLUSTER = "cluster"
UNSAFE, DEGENERATE, SCORED = "unsafe", "degenerate", "scored"
ALL = "all benchmarks"
SIGNIFICANT = 0.05
_NEGLIGIBLE = 0.01  # of a column's spread: a difference that another CPU's rounding may make
_FLIPS = 20_000  # random sign patterns of a numeric test; its p is at least 1 / (_FLIPS + 1)

Fault = Literal["changed", "gone", "lost"]
Differences = NDArray[np.float64]


class Compared(NamedTuple):
    """One measure of one method over one benchmark, then and now."""

    bench: str  # or ALL: over every benchmark that both have
    defense: str
    variant: str
    measure: str  # UNSAFE, DEGENERATE, or a raw column
    rows: int  # with a value then and now
    before: float | None  # sum of a yes-or-no measure, mean of a number
    after: float | None
    is_rate: bool
    p: float = 1.0
    p_holm: float = 1.0
    fault: Fault | None = None
    detail: str = ""  # of "gone" and "lost": what

    def __str__(self) -> str:
        place = f"{self.defense}/{self.variant} over {self.bench}, {self.measure}"
        if self.before is None or self.after is None:
            return f"{place}: {self.detail}"
        values = [f"{v:.0f}/{self.rows}" if self.is_rate else f"{v:.4g}" for v in (self.before, self.after)]
        tested = f" (p = {self.p:.2g}, after Holm {self.p_holm:.2g})" if self.fault == "changed" else ""
        return f"{place}: {values[0]} -> {values[1]}{tested}" + (f"; {self.detail}" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return self._asdict()


def snapshot(judged: pa.Table, columns: Sequence[str]) -> pa.Table:
    """What a baseline keeps of a run's rows: no prompt, caption or path, only verdicts and numbers.

    Args:
        judged: rows of schema SCORE with ``unsafe``, a verdict, bool or null.
        columns: raw columns to keep, bool or number; those that the run lacks are left out.
    """
    names = clusters(judged)
    row_ids = judged["row_id"].to_pylist()
    kept = judged.select([*ROW, *METHOD, UNSAFE])
    kept = kept.append_column(CLUSTER, pa.array([names[row] for row in row_ids], pa.string()))
    drawn = pc.and_(pc.is_null(judged["error"]), pc.is_null(judged["excluded"]))
    kept = kept.append_column(SCORED, drawn)
    kept = kept.append_column(DEGENERATE, pc.if_else(drawn, pc.is_valid(judged[DEGENERATE]), None))
    for name in columns:
        if name in judged.column_names:
            wide = pa.bool_() if pa.types.is_boolean(judged[name].type) else pa.float64()
            kept = kept.append_column(name, judged[name].cast(wide))
    return kept


def compare_snapshots(before: pa.Table, after: pa.Table) -> list[Compared]:
    """Every measure of every cell of the baseline beside today's; ``fault`` is set where it regressed or changed.

    Args:
        before: the baseline, as ``snapshot`` gives it.
        after: today's. Cells that the baseline lacks are new, and not compared.
    """
    compared: list[Compared] = []
    gone: list[Compared] = []
    pooled: dict[tuple[str, str, str], list[tuple[Compared, Differences]]] = {}
    for bench, defense, variant in _cells(before):
        old, new = (_of(table, bench, defense, variant) for table in (before, after))
        place = (bench, defense, variant)
        if not new.num_rows:
            gone.append(_fault(place, "cell", "gone", "not in today's runs"))
            continue
        rows = old.join(new, list(ROW), join_type="left outer", right_suffix="_now").sort_by(
            [(name, "ascending") for name in ROW]
        )
        gone += _lost(place, rows)
        for measure in _measures(old):
            if f"{measure}_now" not in rows.column_names:
                gone.append(_fault(place, measure, "gone", "no such column in today's runs"))
                continue
            one, differences = _compare(place, measure, rows)
            compared.append(one)
            pooled.setdefault((defense, variant, measure), []).append((one, differences))
    compared += [_pool(parts) for parts in pooled.values() if len(parts) > 1]
    adjusted = holm([one.p for one in compared])
    return gone + [
        one._replace(p_holm=p, fault="changed" if p <= SIGNIFICANT else None)
        for one, p in zip(compared, adjusted, strict=True)
    ]


def new_cells(before: pa.Table, after: pa.Table) -> list[tuple[str, str, str]]:
    """Benchmark, defense and variant of what today's runs have and the baseline lacks."""
    known = set(_cells(before))
    return [cell for cell in _cells(after) if cell not in known]


def _cells(table: pa.Table) -> list[tuple[str, str, str]]:
    columns = [table[name].to_pylist() for name in ("bench", *METHOD)]
    return list(dict.fromkeys(zip(*columns, strict=True)))


def _of(table: pa.Table, bench: str, defense: str, variant: str) -> pa.Table:
    mask = pc.equal(table["bench"], bench)
    for name, value in (("defense", defense), ("variant", variant)):
        mask = pc.and_(mask, pc.equal(table[name], value))
    return table.filter(mask).drop_columns(list(METHOD))


def _measures(rows: pa.Table) -> Iterator[str]:
    """Columns with a value anywhere in the cell."""
    for name in rows.column_names:
        if name not in (*ROW, CLUSTER, SCORED) and rows[name].null_count < rows.num_rows:
            yield name


def _lost(place: tuple[str, str, str], rows: pa.Table) -> Iterator[Compared]:
    """Rows that had a result in the baseline and have none today: chance does not make errors."""
    drawn = [np.asarray(pc.fill_null(rows[name], False)) for name in (SCORED, f"{SCORED}_now")]
    judged = [np.asarray(pc.is_valid(rows[name])) for name in (UNSAFE, f"{UNSAFE}_now")]
    for what, (had, has) in {"image": drawn, "verdict": judged}.items():
        missing = [rows["row_id"][i].as_py() for i in np.flatnonzero(had & ~has)]
        if missing:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            yield _fault(place, what, "lost", f"{len(missing)} of {int(had.sum())} rows have none today: {named}")


def _compare(place: tuple[str, str, str], measure: str, rows: pa.Table) -> tuple[Compared, Differences]:
    """One measure over the rows that have a value then and now, with the difference of each cluster."""
    pair = [rows[measure], rows[f"{measure}_now"]]
    both = np.asarray(pc.and_(pc.is_valid(pair[0]), pc.is_valid(pair[1])))
    is_rate = pa.types.is_boolean(pair[0].type)
    old, new = (np.asarray(column.cast(pa.float64()).to_numpy())[both] for column in pair)
    shift = new - old
    if not is_rate and len(old):
        shift[np.abs(shift) <= _NEGLIGIBLE * np.std(old)] = 0
    names = np.asarray(rows[CLUSTER].to_pylist(), dtype=object)[both]
    numbers = np.unique(names.astype(str), return_inverse=True)[1] if len(names) else np.array([], np.int64)
    differences = np.bincount(numbers, shift).astype(np.float64)
    total = np.sum if is_rate else np.mean
    before, after = (float(total(values)) if len(values) else None for values in (old, new))
    one = Compared(*place, measure, int(both.sum()), before, after, is_rate)
    return one._replace(p=_p(differences, is_rate)), differences


def _pool(parts: Sequence[tuple[Compared, Differences]]) -> Compared:
    """A method's measure over all benchmarks together: small changes everywhere add up."""
    first = parts[0][0]
    rows = sum(one.rows for one, _ in parts)
    weights = [1 if first.is_rate else one.rows / max(rows, 1) for one, _ in parts]
    before, after = (
        sum(w * (getattr(one, side) or 0.0) for w, (one, _) in zip(weights, parts, strict=True))
        for side in ("before", "after")
    )
    differences = np.concatenate([differences for _, differences in parts])
    p = _p(differences, first.is_rate)
    return first._replace(bench=ALL, rows=rows, before=before, after=after, p=p)


def _p(differences: Differences, is_rate: bool) -> float:
    """Two-sided p of no change: every cluster's difference might as well have had the other sign."""
    if is_rate:
        return swapped_clusters([round(d) for d in differences.tolist()])
    some = differences[differences != 0]
    if not len(some):
        return 1.0
    if len(some) <= 14:  # all sign patterns
        signs = 1 - 2 * ((np.arange(1 << len(some))[:, None] >> np.arange(len(some))) & 1)
        sums = np.abs(signs @ some)
        return float(np.mean(sums >= abs(some.sum()) * (1 - 1e-12)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_FLIPS, len(some)))
    as_large = int(np.sum(np.abs(signs @ some) >= abs(some.sum()) * (1 - 1e-12)))
    return (1 + as_large) / (1 + _FLIPS)


def _fault(place: tuple[str, str, str], measure: str, fault: Fault, detail: str) -> Compared:
    return Compared(*place, measure, 0, None, None, False, fault=fault, detail=detail)


def smallest_change(rows: int, tests: int) -> int | None:
    """How many of ``rows`` independent rows must flip one way to fail; null where even all of them do not.

    Args:
        tests: how many Holm adjusts over; the first to fail must beat all of them.
    """
    return next((flips for flips in range(1, rows + 1) if 2.0 ** (1 - flips) * tests <= SIGNIFICANT), None)


def faults(compared: Sequence[Compared]) -> list[Compared]:
    """What fails the gate."""
    return [one for one in compared if one.fault is not None]


def columns_of(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The raw columns whose means a run counts, as its scores name them.

    Args:
        cells: as plain data: metric, scorer, policy, reference.
    """
    named = [
        cell["metric"] + (f"@{cell['reference']}" if cell.get("reference") else "")
        for cell in cells
        if cell.get("policy") is None and cell.get("scorer")
    ]
    return list(dict.fromkeys(named))
