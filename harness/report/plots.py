"""Figures for papers: vector files without a time stamp, the same bytes for the same numbers.

Colours are Okabe and Ito's (told apart by every kind of colour vision), each with a marker of its own; lines are
labelled at their ends in place of a legend.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UserError
from harness.report.curve import COLUMNS, Curve
from harness.report.labels import apart
from harness.report.text import joined
from harness.store.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = "osD^vP*X"
KINDS = ("svg", "pdf")
_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "harness", "svg.fonttype": "path",
    "pdf.fonttype": 42, "figure.dpi": 120,
}  # fmt: skip
_FEW = 24  # points whose k/n are written beside them


class Observed(NamedTuple):
    """A rate where a setting has the value ``x``: k of n with its interval; null where nothing was judged."""

    x: float
    k: int
    n: int
    low: float | None
    high: float | None


class Pair(NamedTuple):
    """A rate before and after a method, over one benchmark."""

    bench: str
    label: str
    before: Observed
    after: Observed
    note: str = ""  # said behind the counts


class Priced(NamedTuple):
    """A method's rate, and device-seconds per image as its ``x``."""

    label: str
    rate: Observed


def ablation(series: Mapping[str, Sequence[Observed]], x_label: str, title: str = "", y_label: str = "ASR") -> Figure:
    """A line with its 95% intervals for each series, k/n at its points.

    Args:
        series: by label, points in any order; those of which nothing was judged are left out.
        x_label: the setting.
        title: what the rates are of.
        y_label: the rate.
    """
    with _figure(4.6, 3.0) as (figure, (axes,)):
        counted = sum(len(points) for points in series.values()) <= _FEW
        ends = []
        places = cycle(((3, 3), (3, -9)))  # of k/n beside their points: above and below in turn
        for colour, marker, (label, points), place in zip(
            cycle(COLOURS), cycle(MARKERS), series.items(), places, strict=False
        ):
            judged = [point for point in sorted(points) if point.n]
            if not judged:
                continue
            shares = [point.k / point.n for point in judged]
            axes.errorbar([p.x for p in judged], shares, _errors(judged), color=colour, marker=marker, markersize=4,
                          linewidth=1.2, elinewidth=0.8, capsize=2)  # fmt: skip
            for point, share in zip(judged, shares, strict=True) if counted else ():
                axes.annotate(f"{point.k}/{point.n}", (point.x, share), place, textcoords="offset points",
                              color=colour, fontsize=6)  # fmt: skip
            ends.append((shares[-1], label, colour))
        axes.set(xlabel=x_label, ylabel=f"{y_label}, 95% interval", title=title)
        _rates(axes)
        _label_ends(axes, ends)
        _caption(figure, _sizes([p for points in series.values() for p in points]))
    return figure


def before_and_after(pairs: Sequence[Pair], title: str = "", words: tuple[str, str] = ("before", "after")) -> Figure:
    """A line of two points for each pair, a plot for each benchmark; k/n and what is noted stand beside.

    Args:
        pairs: from top to bottom.
        title: what the rates are of.
        words: what the two points are called.
    """
    benches = list(dict.fromkeys(pair.bench for pair in pairs))
    heights = [sum(pair.bench == bench for pair in pairs) for bench in benches]
    size = 0.9 + 0.3 * sum(heights) + 0.45 * len(benches)
    with _figure(6.4, size, len(benches), [height + 1.0 for height in heights]) as (figure, plots):
        for axes, bench in zip(plots, benches, strict=True):
            own = [pair for pair in pairs if pair.bench == bench]
            for y, pair in enumerate(own):
                _pair(axes, y, pair)
            axes.set(ylim=(len(own) - 0.4, -0.8), xlim=(-0.02, 1.02), title=f"{bench}{': ' if title else ''}{title}")
            axes.set_yticks(range(len(own)), [pair.label for pair in own])
            _percent(axes.xaxis)
            for word, point, colour in zip(words, (own[0].before, own[0].after), COLOURS, strict=False):
                if point.n:
                    axes.annotate(word, (point.k / point.n, 0), (0, 6), textcoords="offset points", ha="center",
                                  color=colour, fontsize=7)  # fmt: skip
        plots[-1].set_xlabel("ASR, 95% interval")
    return figure


def _pair(axes: Any, y: int, pair: Pair) -> None:
    ends = [(point, colour) for point, colour in zip((pair.before, pair.after), COLOURS, strict=False) if point.n]
    axes.plot([point.k / point.n for point, _ in ends], [y] * len(ends), color="#7F7F7F", linewidth=1, zorder=1)
    for (point, colour), filled in zip(ends, (False, True), strict=False):
        axes.errorbar(
            point.k / point.n, y, xerr=_errors([point]), color=colour, marker="o", markersize=5, elinewidth=0.8,
            markerfacecolor=colour if filled else "white", capsize=2, zorder=2,
        )  # fmt: skip
    counts = " → ".join(f"{point.k}/{point.n}" for point in (pair.before, pair.after))
    axes.text(1.03, y, f"{counts}  {pair.note}".rstrip(), va="center", fontsize=7, transform=axes.get_yaxis_transform())


def cost_against_rate(points: Sequence[Priced], title: str = "") -> Figure:
    """Each method where its device-seconds per image and its rate put it, labelled with its k/n."""
    with _figure(5.2, 3.2) as (figure, (axes,)):
        judged = [point for point in points if point.rate.n]
        for colour, marker, (label, rate) in zip(cycle(COLOURS), cycle(MARKERS), judged, strict=False):
            share = rate.k / rate.n
            axes.errorbar(rate.x, share, _errors([rate]), color=colour, marker=marker, markersize=5, elinewidth=0.8,
                          capsize=2)  # fmt: skip
            axes.annotate(f"{label} {rate.k}/{rate.n}", (rate.x, share), (6, 3), textcoords="offset points",
                          color=colour, fontsize=7)  # fmt: skip
        prices = [point.rate.x for point in judged if point.rate.x > 0]
        if prices and max(prices) / min(prices) > 10:
            axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.set(xlabel="device-seconds per image, without loading models", ylabel="ASR, 95% interval", title=title)
        _rates(axes)
        _caption(figure, _sizes([point.rate for point in judged]))
    return figure


def thresholds(curves: Sequence[Curve]) -> Figure:
    """A plot for each benchmark: a line with its 95% interval for each method, a marker for each published policy."""
    benches = list(dict.fromkeys(one.group.bench for one in curves))
    names = dict.fromkeys(mark.policy for one in curves for mark in one.marks)
    shapes = dict(zip(names, cycle(MARKERS), strict=False))
    with _figure(6.4, 3.6 * len(benches), len(benches)) as (figure, plots):
        for axes, bench in zip(plots, benches, strict=True):
            _thresholds(axes, [one for one in curves if one.group.bench == bench], shapes)
        for name, shape in shapes.items():
            plots[0].plot([], [], shape, color="#7F7F7F", markersize=4, label=name)
        points = [Observed(p.threshold, p.k, p.n, p.low, p.high) for one in curves for p in one.points]
        figure.legend(  # of policies alone, whose shapes recur on every line; lines are labelled at their ends
            fontsize=6, frameon=False, loc="outside lower center", ncols=3, title=f"{_sizes(points)}; policies:",
            title_fontsize=6,
        )  # fmt: skip
    return figure


def _thresholds(axes: Any, curves: Sequence[Curve], shapes: Mapping[str, str]) -> None:
    """Args: shapes: marker of each policy."""
    ends = []
    for one, colour in zip(curves, cycle(COLOURS), strict=False):
        judged = [point for point in one.points if point.n]
        places, shares = [point.threshold for point in judged], [point.k / point.n for point in judged]
        axes.step(places, shares, where="post", color=colour, linewidth=1.2)
        interval = [point.low for point in judged], [point.high for point in judged]
        axes.fill_between(places, *interval, step="post", color=colour, alpha=0.15, linewidth=0)
        for mark in one.marks:
            if mark.point.n and mark.point.value is not None:
                axes.plot(mark.point.threshold, mark.point.value, shapes[mark.policy], color=colour, markersize=5)
        if judged:  # a strict threshold at the highest score leaves nothing: the label stands before that drop
            ends.append((shares[len(shares) * 9 // 10], joined(one.group.defense, one.group.variant), colour))
    first = curves[0]
    axes.set(
        title=f"{first.group.bench} ({first.group.profile}), by {first.policy.name}",
        xlabel=f"threshold (unsafe if {first.policy.rule.op})",
        ylabel="ASR, 95% interval",
    )
    _rates(axes)
    _label_ends(axes, ends)


def write_curves(folder: Path, name: str, curves: Sequence[Curve]) -> list[Path]:
    """Write ``<name>.csv``, ``<name>.json`` and ``<name>.png``, and return their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    rows = [row for one in curves for row in one.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "json")]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(paths[0], text.getvalue().encode())
        write_atomically(paths[1], (json.dumps(rows, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return [*paths, *save(thresholds(curves), folder, name, ["png"])]


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write ``<name>.<kind>`` for each kind, without a time stamp, and return their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in paths:
            write_atomically(path, encoded(figure, path.suffix.removeprefix(".")))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return paths


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as svg, pdf or png."""
    from matplotlib import rc_context

    stamps: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    out = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(out, format=kind, metadata=stamps.get(kind))
    return out.getvalue()


@contextmanager
def _figure(
    width: float, height: float, rows: int = 1, shares: Sequence[float] | None = None
) -> Iterator[tuple[Figure, Sequence[Any]]]:
    """A figure in inches and its plots, one below the other, in the style of them all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(rows, squeeze=False, height_ratios=shares).flat)


def _errors(points: Sequence[Observed]) -> list[list[float]]:
    """How far intervals reach below and above their rates."""
    shares = [point.k / point.n for point in points]
    low = [max(0.0, share - (share if p.low is None else p.low)) for p, share in zip(points, shares, strict=True)]
    high = [max(0.0, (share if p.high is None else p.high) - share) for p, share in zip(points, shares, strict=True)]
    return [low, high]


def _rates(axes: Any) -> None:
    """The vertical axis is of rates."""
    axes.set_ylim(-0.02, 1.02)
    _percent(axes.yaxis)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels right of the lines that end at these rates."""
    for place, (_, label, colour) in zip(apart([e[0] for e in ends], 0.055, 0.0, 1.0), ends, strict=True):
        axes.annotate(label, (1.01, place), xycoords=("axes fraction", "data"), color=colour, va="center", fontsize=7,
                      annotation_clip=False)  # fmt: skip


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=6, color="#555555")


def _sizes(points: Sequence[Observed]) -> str:
    """How many rows the rates are of, in words."""
    sizes = sorted({point.n for point in points if point.n})
    if not sizes:
        return "nothing was judged"
    return f"k of n = {sizes[0]} at every point" if len(sizes) == 1 else f"k of n, n from {sizes[0]} to {sizes[-1]}"
