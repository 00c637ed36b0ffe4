"""ASR against threshold of a run: a table (CSV, JSON) and an image, with the point of each published policy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.cells import GROUP, Part, parts
from harness.metrics.threshold import Point, curve, grid
from harness.store.files import write_atomically

COLUMNS = ("kind", *GROUP, "policy", "op", "threshold", "k", "n", "value", "low", "high")


class Mark(NamedTuple):
    """Where a published policy over the same scorer stands; off the curve when it asks other columns."""

    policy: str
    op: str
    on_curve: bool
    point: Point


@dataclass(frozen=True)
class Curve:
    """One method over one benchmark."""

    part: Part
    policy: PolicyCard
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point of the curve (kind "curve") and each mark (kind "policy")."""
        rows = [self._row("curve", self.policy.name, self.policy.rule.op, point) for point in self.points]
        return rows + [self._row("policy", mark.policy, mark.op, mark.point) for mark in self.marks]

    def _row(self, kind: str, policy: str, op: str, point: Point) -> dict[str, Any]:
        numbers = point._asdict() | {"value": point.value}
        row = {"kind": kind, **self.part.identity(), "policy": policy, "op": op, **numbers}
        return {name: row[name] for name in COLUMNS}


def curves(scores: pa.Table, chosen: Mapping[str, PolicyCard], policies: Iterable[PolicyCard]) -> list[Curve]:
    """A curve for each method over each benchmark whose rows have verdicts.

    Args:
        scores: a run's rows, schema SCORE.
        chosen: by concept of the benchmark, whose threshold moves; a part of another concept has no curve.
        policies: candidates for marks: those of the chosen one's scorer and concept whose columns are there.

    Raises:
        UserError: the scores lack a column of a chosen policy, or nothing was judged by it.
    """
    known = list(policies)
    curves = []
    for part in parts(scores):
        policy = chosen.get(part.concept)
        if policy is None:
            continue
        marks = _marks(policy, known, part.rows)
        steps = grid(policy, part.rows, [mark.point.threshold for mark in marks])
        points = tuple(curve(policy, part.rows, steps))
        if any(point.n for point in points):
            curves.append(Curve(part, policy, points, marks))
    if not curves:
        raise UserError(
            f"no row of this run has a verdict by {', '.join(p.name for p in chosen.values()) or 'any policy'}"
        )
    return curves


def _marks(policy: PolicyCard, known: Sequence[PolicyCard], rows: pa.Table) -> tuple[Mark, ...]:
    marks = []
    for other in known:
        columns = [name for clause in other.clauses for name in clause.any_of]
        there = set(columns) <= set(rows.column_names)
        if there and other.unit == "image" and (other.scorer, other.concept) == (policy.scorer, policy.concept):
            (point,) = curve(other, rows, [other.rule.threshold])
            same = set(other.rule.any_of) == set(policy.rule.any_of) and other.others == policy.others
            marks.append(Mark(other.name, other.rule.op, same and other.rule.op == policy.rule.op, point))
    return tuple(marks)


def write(folder: Path, name: str, curves: Sequence[Curve]) -> list[Path]:
    """Write ``<name>.csv``, ``<name>.json`` and ``<name>.png``, and return their paths.

    Raises:
        UserError: the folder cannot be written, or matplotlib is not installed (the first two are there then).
    """
    rows = [row for one in curves for row in one.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "json", "png")]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(paths[0], text.getvalue().encode())
        write_atomically(paths[1], (json.dumps(rows, indent=1) + "\n").encode())
        write_atomically(paths[2], image(curves))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return paths


def image(curves: Sequence[Curve]) -> bytes:
    """A PNG: a plot for each benchmark, a line for each method, its 95% interval, a marker for each policy.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the image of a curve needs matplotlib: pip install matplotlib") from None
    benches = list(dict.fromkeys(one.part.bench for one in curves))
    figure = Figure(figsize=(6.4, 3.8 * len(benches)), layout="constrained")
    for axes, bench in zip(figure.subplots(len(benches), squeeze=False).flat, benches, strict=True):
        _plot(axes, [one for one in curves if one.part.bench == bench])
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _plot(axes: Any, curves: Sequence[Curve]) -> None:
    shapes = dict(zip(dict.fromkeys(m.policy for one in curves for m in one.marks), cycle("osD^vP*X"), strict=False))
    for i, one in enumerate(curves):
        judged = [point for point in one.points if point.n]
        thresholds, colour = [point.threshold for point in judged], f"C{i % 10}"
        method = one.part.defense if one.part.variant == "base" else f"{one.part.defense} + {one.part.variant}"
        axes.step(thresholds, [point.value for point in judged], where="post", color=colour, label=method)
        ends = [point.low for point in judged], [point.high for point in judged]
        axes.fill_between(thresholds, *ends, step="post", color=colour, alpha=0.15, linewidth=0)
        for mark in one.marks:
            if mark.point.n:
                axes.plot(mark.point.threshold, mark.point.value, shapes[mark.policy], color=colour, markersize=5)
    for policy, shape in shapes.items():
        axes.plot([], [], shape, color="grey", markersize=5, label=policy)
    first = curves[0]
    axes.set(
        title=f"{first.part.bench} ({first.part.profile}), by {first.policy.name}",
        xlabel=f"threshold (unsafe if {first.policy.rule.op})",
        ylabel="ASR, 95% interval",
        ylim=(-0.02, 1.02),
    )
    axes.legend(fontsize="x-small")
