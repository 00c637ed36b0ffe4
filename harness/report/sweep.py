"""A sweep for people: its cells, the best one and what choosing it did, and curves along each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.overrides import said
from harness.metrics.cells import ASR
from harness.metrics.intervals import wilson
from harness.report.plots import Observed, ablation, encoded
from harness.report.text import percent
from harness.store.files import write_atomically

NAMES = ("defense", "variant", "bench", "backbone", "seed")
_SHOWN = 40  # cells of a table for people; all are in the CSV


class Point(NamedTuple):
    """All cells with one value on an axis."""

    value: Any
    k: int
    n: int
    cells: int

    @property
    def rate(self) -> float:
        return self.k / self.n


class Curve(NamedTuple):
    """ASR along one axis, of one benchmark and defense."""

    axis: str
    bench: str
    defense: str
    points: tuple[Point, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return all(isinstance(p.value, int | float) and not isinstance(p.value, bool) for p in self.points)


def write(folder: Path, name: str, record: Mapping[str, Any], numbers: pa.Table) -> None:
    """Write the report, and a plot for each axis; those of an earlier sweep are removed."""
    cells = cells_of(numbers)
    for stale in folder.glob("*.svg"):
        stale.unlink()
    drawn = curves(record, cells)
    for axis in _plotted(drawn):
        write_atomically(folder / f"{axis}.svg", image([c for c in drawn if c.axis == axis]))
    write_atomically(folder / name, markdown(record, cells).encode())


def cells_of(numbers: pa.Table) -> list[dict[str, Any]]:
    """The rows of a sweep's table that are looked at first: each cell's ASR by the main policy, in the cells' order."""
    chosen = pc.and_(pc.equal(numbers["metric"], ASR), pc.and_(numbers["main"], pc.is_valid(numbers["cell"])))
    rows: list[dict[str, Any]] = numbers.filter(chosen).sort_by("cell").to_pylist()
    return rows


def varied(record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that tell the cells apart: axes, and names with several values."""
    axes = list(record["axes"])
    names = [name for name in NAMES if len({cell[name] for cell in cells}) > 1]
    return [name for name in names if name != "variant" or not axes] + [axis for axis in axes if axis not in names]


def curves(record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Along each axis the pooled rate of all cells with each value; one at a time, of the cells on that axis alone."""
    axes = [axis for axis in record["axes"] if axis not in NAMES]
    drawn_along = []
    for bench, defense in dict.fromkeys((c["bench"], c["defense"]) for c in cells):
        own = [c for c in cells if (c["bench"], c["defense"]) == (bench, defense)]
        for axis in axes:
            on_axis = _on_axis(own, axis, axes) if record["mode"] == "one-at-a-time" else own
            points = _points(on_axis, axis)
            if len(points) > 1:
                drawn_along.append(Curve(axis, bench, defense, points))
    return drawn_along


def _on_axis(cells: Sequence[Mapping[str, Any]], axis: str, axes: Sequence[str]) -> list[Mapping[str, Any]]:
    """The cells that differ from the first, which has the cards' own values, on ``axis`` alone."""
    first = cells[0]
    return [c for c in cells if all(c[other] == first[other] for other in axes if other != axis)]


def _points(cells: Sequence[Mapping[str, Any]], axis: str) -> tuple[Point, ...]:
    values = {c[axis] for c in cells}
    numbers = [v for v in values if isinstance(v, int | float)]
    order = sorted(numbers) if len(numbers) == len(values) else list(dict.fromkeys(c[axis] for c in cells))
    points = []
    for value in order:
        own = [c for c in cells if c[axis] == value]
        points.append(Point(value, sum(c["k"] for c in own), sum(c["n"] for c in own), len(own)))
    return tuple(point for point in points if point.n)


def image(along: Sequence[Curve]) -> bytes:
    """An SVG of curves along one axis of numbers: pooled rates, with the interval of a rate over one cell's rows.

    Cells with the same value are over the same rows, so that more cells do not make an interval narrower.
    """
    series = {}
    for curve in along:
        ends = [wilson(p.k / p.cells, p.n / p.cells) for p in curve.points]
        series[f"{curve.bench}, {curve.defense}"] = [
            Observed(p.value, p.k, p.n, min(end.low, p.rate), max(end.high, p.rate))
            for p, end in zip(curve.points, ends, strict=True)
        ]
    cells = max(p.cells for curve in along for p in curve.points)
    pooled = f"ASR of {cells} cells together" if cells > 1 else "ASR"
    return encoded(ablation(series, along[0].axis, y_label=pooled), "svg")


def markdown(record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The report: what was asked, every cell, the best, and the plots."""
    columns = varied(record, cells)
    lines = [f"# {record['run']}", "", f"    {record['command']}", "", *_marginal_lines(curves(record, cells))]
    head = [*columns, "ASR k/n", "", "95%", "errors", "excluded"]
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in (_row(c, columns) for c in cells)]
    lines += ["", *(line for one in record["best"] for line in (*best_lines(one), "")), *footer(record)]
    return "\n".join(lines) + "\n"


def _plotted(along: Sequence[Curve]) -> list[str]:
    """Axes whose values are numbers; those of words have their numbers in the report alone."""
    axes = dict.fromkeys(curve.axis for curve in along)
    return [axis for axis in axes if all(c.is_numeric for c in along if c.axis == axis)]


def _marginal_lines(along: Sequence[Curve]) -> list[str]:
    """The plots, and the numbers of all curves."""
    if not along:
        return []
    lines = [*(f"![ASR along {axis}]({axis}.svg)" for axis in _plotted(along)), ""]
    lines += ["All cells with one value together:", "", "| axis | value | bench | defense | cells | k/n | ASR |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for curve in along:
        for p in curve.points:
            words = [curve.axis, said(p.value), curve.bench, curve.defense, str(p.cells), f"{p.k}/{p.n}"]
            lines.append("| " + " | ".join([*words, percent(p.rate)]) + " |")
    return [*lines, ""]


def _row(cell: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    ends = "" if cell["low"] is None else f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    counts = [f"{cell['k']}/{cell['n']}", percent(cell["value"]), ends, str(cell["errors"]), str(cell["excluded"])]
    return [*(said(cell[name]) for name in columns), *counts]


def text(record: Mapping[str, Any], numbers: pa.Table) -> str:
    """The sweep for a terminal."""
    cells = cells_of(numbers)
    columns = varied(record, cells)
    shown = cells if len(cells) <= _SHOWN else sorted(cells, key=lambda c: c["value"] or 0.0)[:_SHOWN]
    rows = [[*columns, "ASR k/n", "", "95%", "errors", "excluded"], *(_row(c, columns) for c in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(shown) < len(cells):
        lines.append(f"(the {len(shown)} lowest of {len(cells)} cells; all are in the table)")
    for one in record["best"]:
        lines += ["", *best_lines(one)]
    return "\n".join([*lines, "", *footer(record)])


def best_lines(best: Mapping[str, Any]) -> list[str]:
    """The best cell with its interval, and what choosing it by these very rows does to its number."""
    low, high = (100 * end for end in best["interval"])
    joint = "[" + ", ".join(f"{100 * end:.1f}" for end in best["joint"]) + "]"
    names = {"defense": best["best"]["defense"], "variant": best["best"]["variant"]}
    rate = percent(best["k"] / best["n"])
    return [
        f"best on {best['bench']}: {names['defense']}/{names['variant']}, {best['k']}/{best['n']} {rate} "
        f"[{low:.1f}, {high:.1f}], lowest of {best['of']} cells by {best['policy']}",
        f"  selected: chosen by the rows that it is counted on, so its rate is too low ({_optimism(best)}) and its "
        f"interval too narrow; {joint} holds for all cells at once",
        f"  the same cell is the lowest in {100 * best['chosen']:.0f}% of resamples of the prompts; "
        f"{len(best['tied'])} of the other {best['of'] - 1} cells are not told apart from it",
        "  an unbiased number needs rows that had no say in the choice: another benchmark, or other seeds",
    ]


def _optimism(best: Mapping[str, Any]) -> str:
    """How much too low the chosen rate is expected to be, in words."""
    if not best["k"]:
        return "by how much, rows without one unsafe image cannot say"
    return f"by about {100 * best['optimism']:.1f} points"


def footer(record: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on."""
    lines = []
    if record["profile"] == "shapes":
        lines.append("profile   shapes: numbers of a small synthetic world; they say nothing of Stable Diffusion 1.4")
    if record["limit"] is not None:
        lines.append(f"subset    only the first {record['limit']} rows of each benchmark")
    lines.append("rates     uncorrected: as if the detector never erred")
    return lines
