"""Threshold curves as SVG within the page: drawn with its text's colours, in light and in dark, without any script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from harness.report.curve import Curve
from harness.report.labels import apart
from harness.report.text import joined

WIDTH, HEIGHT = 680, 320  # of the drawing; taller where many methods need their labels
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 200, 12, 40
_LINE = 14  # pixels of a label's line
_TICKS = 5


class Drawing(NamedTuple):
    """One benchmark's curves, ready for the template; all places in pixels."""

    width: int
    height: int
    title: str
    description: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[dict[str, Any]]  # "label", "colour" (number), "path", "band", "end", "label_y", "marks"
    box: tuple[float, float, float, float]  # left, top, right, bottom of the axes


def drawings(curves: Sequence[Curve]) -> list[Drawing]:
    """One for each benchmark, in the order of the curves."""
    by_bench: dict[tuple[str, str], list[Curve]] = {}
    for one in curves:
        by_bench.setdefault((one.group.bench, one.policy.name), []).append(one)
    return [_drawing(own) for own in by_bench.values()]


def _drawing(curves: Sequence[Curve]) -> Drawing:
    thresholds = [p.threshold for one in curves for p in one.points if p.n]
    low, high = min(thresholds, default=0.0), max(thresholds, default=1.0)
    high = high if high > low else low + 1.0
    height = max(HEIGHT, _TOP + _BOTTOM + _LINE * len(curves))
    box = (float(_LEFT), float(_TOP), float(WIDTH - _RIGHT), float(height - _BOTTOM))

    def x(value: float) -> float:
        return round(box[0] + (value - low) / (high - low) * (box[2] - box[0]), 1)

    def y(share: float) -> float:
        return round(box[3] - share * (box[3] - box[1]), 1)

    lines: list[dict[str, Any]] = []
    for i, one in enumerate(curves):
        judged = [p for p in one.points if p.n and p.value is not None and p.low is not None and p.high is not None]
        if not judged:
            continue
        upper = _steps([(x(p.threshold), y(p.high or 0.0)) for p in judged])
        lower = _steps([(x(p.threshold), y(p.low or 0.0)) for p in judged])
        values = _steps([(x(p.threshold), y(p.value or 0.0)) for p in judged])
        marks = [
            {"x": x(at.threshold), "y": y(at.value or 0.0), "policy": name, "k": at.k, "n": at.n}
            for name, _, _, at in one.marks if at.n and low <= at.threshold <= high
        ]  # fmt: skip
        lines.append(
            {
                "label": joined(one.group.defense, one.group.variant),
                "colour": i % 8,
                "dash": i // 8 % 4,
                "path": _path(values),
                "band": _path([*upper, *reversed(lower)]),
                "end": (box[2], y(judged[len(judged) * 9 // 10].value or 0.0)),  # before the drop at the last score
                "marks": marks,
            }
        )
    for line, place in zip(lines, apart([line["end"][1] for line in lines], _LINE, box[1], box[3]), strict=True):
        line["label_y"] = round(place, 1)
    first = curves[0]
    ticks = [low + (high - low) * i / _TICKS for i in range(_TICKS + 1)]
    return Drawing(
        width=WIDTH,
        height=height,
        title=f"{first.group.bench} by {first.policy.name}",
        description=f"ASR against the threshold over {first.group.bench}: " + "; ".join(map(_summary, curves)),
        x_label=f"threshold (unsafe if {first.policy.rule.op})",
        x_ticks=[(x(t), f"{t:.2g}") for t in ticks],
        y_ticks=[(y(i / _TICKS), f"{100 * i // _TICKS}%") for i in range(_TICKS + 1)],
        lines=lines,
        box=box,
    )


def _summary(one: Curve) -> str:
    """A curve in words: its counts at the policy's own threshold."""
    at = next((m.point for m in one.marks if m.policy == one.policy.name), None)
    counts = f"{at.k}/{at.n} at {at.threshold:g}" if at else "no verdict at the policy's own threshold"
    return f"{joined(one.group.defense, one.group.variant)} {counts}"


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a step line that keeps its value up to the next point; runs of one value shortened."""
    kept = [next(iter(run)) for _, run in groupby(points, key=lambda point: point[1])]
    corners: list[tuple[float, float]] = []
    for place, level in kept:
        if corners:
            corners.append((place, corners[-1][1]))
        corners.append((place, level))
    if points and corners[-1][0] != points[-1][0]:
        corners.append((points[-1][0], corners[-1][1]))
    return corners


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
