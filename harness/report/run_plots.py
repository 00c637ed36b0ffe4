"""The figures of one run, from its cells, costs and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.cells import ASR, Cell, Policies
from harness.metrics.comparison import BASE
from harness.metrics.cost import Cost
from harness.report import curve, plots
from harness.report.plots import Observed, Pair, Priced
from harness.report.text import joined, p_value

SETTINGS = {"alpha": "alpha", "lam": "lambda", "tokens": "N (tokens)"}  # of a regeneration, as the axes call them


def write(
    folder: Path, cells: Sequence[Cell], costs: Sequence[Cost], scores: pa.Table, policies: Policies,
    published: Iterable[PolicyCard] = (),
) -> list[Path]:  # fmt: skip
    """Write each figure that the run has numbers for, as SVG and PDF; returns their paths.

    ``asr_before_after``, ``threshold_<policy>``, ``cost_against_asr_<bench>`` and ``ablation_<setting>_<bench>``.

    Args:
        folder: where to.
        cells: of the run.
        costs: what its images took.
        scores: its rows, schema SCORE.
        policies: by concept, the main one first.
        published: of other papers, marked on the threshold curves.

    Raises:
        UserError: the folder cannot be written, or the run has no rate.
    """
    figures = {}
    rates = [cell for cell in cells if cell.main and cell.metric == ASR]
    if pairs := pairs_of(rates):
        figures["asr_before_after"] = plots.before_and_after(pairs)
    curves = curve.by_main_policies(scores, policies, published)
    for name in dict.fromkeys(one.policy.name for one in curves):
        figures[f"threshold_{name}"] = plots.thresholds([one for one in curves if one.policy.name == name])
    for bench in dict.fromkeys(cell.bench for cell in rates):
        own = [cell for cell in rates if cell.bench == bench]
        if priced := priced_of(own, costs):
            figures[f"cost_against_asr_{bench}"] = plots.cost_against_rate(priced, bench)
        for setting, label in SETTINGS.items():
            if series := ablations(own, setting):
                figures[f"ablation_{setting}_{bench}"] = plots.ablation(series, label, bench)
    if not figures:
        raise UserError("this run has no rate to draw: no policy judges its images")
    return [path for name, figure in figures.items() for path in plots.save(figure, folder, name)]


def observed(cell: Cell, x: float = 0.0) -> Observed:
    """A cell's rate where a setting is ``x``."""
    return Observed(x, cell.k or 0, cell.n, cell.low, cell.high)


def pairs_of(rates: Sequence[Cell]) -> list[Pair]:
    """Each regeneration beside the images it began from; in a run without any, each defense beside the undefended."""
    by_method = {(cell.bench, cell.defense, cell.variant): cell for cell in rates}
    regenerated = [cell for cell in rates if cell.variant != BASE]
    chosen = regenerated or [cell for cell in rates if cell.defense != "none"]
    pairs = []
    for cell in chosen:
        before = by_method.get((cell.bench, cell.defense if regenerated else "none", BASE))
        if before is not None:
            p = cell.compared.p_holm if cell.compared else None
            note = "" if p is None else f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"
            pairs.append(Pair(cell.bench, joined(cell.defense, cell.variant), observed(before), observed(cell), note))
    return pairs


def priced_of(rates: Sequence[Cell], costs: Sequence[Cost]) -> list[Priced]:
    """Methods of one benchmark by what an image of theirs takes: of a regeneration, the image it began from too."""
    seconds = {(cost.defense, cost.variant, cost.bench): cost.per_image for cost in costs}
    priced = []
    for cell in rates:
        own = seconds.get((cell.defense, cell.variant, cell.bench))
        before = 0.0 if cell.variant == BASE else seconds.get((cell.defense, BASE, cell.bench))
        if own is not None and before is not None:
            priced.append(Priced(joined(cell.defense, cell.variant), observed(cell, own + before)))
    return priced


def ablations(rates: Sequence[Cell], setting: str) -> Mapping[str, list[Observed]]:
    """By defense and the other settings, rates of regenerations that differ in one setting alone.

    Args:
        rates: of one benchmark.
        setting: key of ``Cell.method``.
    """
    series: dict[tuple[str, tuple[tuple[str, str], ...]], list[Observed]] = {}
    for cell in rates:
        value = cell.method.get(setting)
        if cell.variant == BASE or not isinstance(value, int | float):
            continue
        others = {"method": cell.variant.partition(":")[0], **cell.method, **cell.settings}
        others.pop(setting)
        key = (cell.defense, tuple((name, str(other)) for name, other in others.items()))
        series.setdefault(key, []).append(observed(cell, float(value)))
    curves = {key: points for key, points in series.items() if len({point.x for point in points}) > 1}
    return {_told(defense, others, [own for _, own in curves]): curves[defense, others] for defense, others in curves}


def _told(defense: str, others: Iterable[tuple[str, str]], every: Sequence[Iterable[tuple[str, str]]]) -> str:
    """What tells a series from the others: its defense, and settings in which not all agree."""
    shared = set.intersection(*map(set, every))
    return ", ".join([defense, *(f"{name} {value}" for name, value in others if (name, value) not in shared)])
