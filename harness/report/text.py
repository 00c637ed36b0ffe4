"""How numbers and rules read, the same on a terminal and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.data.concepts import is_shapes_world
from harness.metrics.cells import ASR, ASR_FLAGGED, BOXES, DEGENERATE, PASS_THROUGH, Cell
from harness.metrics.comparison import BASE

Column = tuple[str, str, str, str]  # profile, backbone, bench, concept: one table of a report

UNCORRECTED = "uncorrected: as if the detector never erred; labels correct it: harness judge export RUN --task unsafe"
LOST = (
    "rows with a verdict before regeneration and none after it (a refusal, the guard on captions); the rate lies "
    "between what it were had all of them been safe, and unsafe"
)
_TEST = "exact McNemar on the same rows, Holm within the column, 5%"
BEST = f"lowest ASR, or not significantly above it ({_TEST})"


_SHOWN = 5  # rows that failed for one reason, in a line

HEADINGS = {
    PASS_THROUGH: "passes through",  # P(unsafe after | unsafe before)
    ASR_FLAGGED: "ASR if only flagged",
}
AFTER = (
    "passes through: unsafe after, of those unsafe before; ASR if only flagged: had only the images that the policy "
    "flags been made anew; hit@k: prompts with an unsafe one among k samples; the other numbers compare each image "
    "with the one before regeneration"
)


def columns(cells: Iterable[Cell]) -> dict[Column, dict[str, list[Cell]]]:
    """The ASR cells by column and policy, a column's main policy first, methods in their order."""
    by_column: dict[Column, dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.metric == ASR:
            by_policy = by_column.setdefault((cell.profile, cell.backbone, cell.bench, cell.concept), {})
            by_policy.setdefault(str(cell.policy), []).append(cell)
        elif cell.metric == DEGENERATE:  # a benchmark of which nothing is unsafe has numbers too
            by_column.setdefault((cell.profile, cell.backbone, cell.bench, cell.concept), {})
    return by_column


def degenerate(cells: Iterable[Cell]) -> dict[tuple[str, ...], str]:
    """``k/n`` of black, flat or noise images, by ``place``."""
    return {place(c): counts(c) for c in cells if c.metric == DEGENERATE}


def after(cells: Iterable[Cell]) -> dict[Column, dict[tuple[str, str], dict[str, Cell]]]:
    """What regeneration does, by column and method: each number beside ASR under its heading, of the main policy.

    Means of pair scorers are there for every method that has a reference.
    """
    by_column: dict[Column, dict[tuple[str, str], dict[str, Cell]]] = {}
    for cell in cells:
        if cell.metric in (ASR, DEGENERATE) or (cell.metric != BOXES and cell.policy is not None and not cell.main):
            continue
        by_method = by_column.setdefault((cell.profile, cell.backbone, cell.bench, cell.concept), {})
        heading = HEADINGS.get(cell.metric, cell.metric.replace("_", " "))
        heading += f" by {cell.policy}" if cell.metric == BOXES else ""
        heading += f" (to {cell.reference})" if cell.reference and cell.reference != "same/base" else ""
        by_method.setdefault((cell.defense, cell.variant), {})[heading] = cell
    return by_column


def methods(cells: Iterable[Cell]) -> list[str]:
    """How each regenerator was set, "resafe: alpha 0.7, lam 1, tokens 8"; a deviation from its paper is one of them."""
    settings = (
        f"{c.variant}: " + ", ".join(f"{name} {value}" for name, value in {**c.method, **c.settings}.items())
        for c in cells
        if c.variant != BASE and c.method
    )
    return list(dict.fromkeys(settings))


def place(cell: Cell) -> tuple[str, ...]:
    """What a cell shares with the others of its method and benchmark."""
    return cell.profile, cell.backbone, cell.defense, cell.variant, cell.bench, cell.concept


def subsets(cells: Iterable[Cell]) -> dict[str, str]:
    """Benchmarks of which only some rows were used: bench -> "16/95"."""
    return {c.bench: c.subset for c in cells if c.subset}


def undecided(cells: Iterable[Cell]) -> list[str]:
    """Columns in which no method is best since none is significantly worse, a line each."""
    lines = []
    for (_, _, bench, _), by_policy in columns(cells).items():
        for policy, own in by_policy.items():
            rated = [cell for cell in own if cell.n]
            if len(rated) > 1 and not any(cell.compared and cell.compared.best for cell in rated):
                rows = max(cell.n for cell in rated)
                lines.append(f"nobody on {bench} by {policy}: {rows} rows tell no method from the lowest ASR ({_TEST})")
    return lines


def missing(cells: Iterable[Cell]) -> list[str]:
    """Why rows have no verdict by the main policy: "p4d, excluded: age-term: none 1, rece 1" per reason.

    Of those that failed it says which: "p4d, error: crash: none 1 (00017)".
    """
    by_reason: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for reason, rows in cell.reasons.items() if cell.main and cell.metric == ASR else ():
            named = _named(cell, reason)
            by_reason.setdefault((cell.bench, reason), []).append(
                f"{method(cell)} {rows}" + (f" ({named})" if named else "")
            )
    return [f"{bench}, {reason}: {', '.join(methods)}" for (bench, reason), methods in by_reason.items()]


def _named(cell: Cell, reason: str) -> str:
    """The rows that failed for a reason, by name, as far as they can be shown."""
    rows = [row_id.removeprefix(f"{cell.bench}/") for row_id in cell.failed_rows.get(reason, ())]
    more = cell.reasons[reason] - len(rows[:_SHOWN])
    return ", ".join(rows[:_SHOWN]) + (f" and {more} more" if rows and more else "")


def copies(cells: Iterable[Cell]) -> list[str]:
    """Where rows are not all observations of their own: "mma: 1000 scored rows are of 812 prompts" per benchmark."""
    by_number: dict[tuple[str, int, int], list[str]] = {}
    for cell in cells:
        if cell.main and cell.metric == ASR and cell.clusters is not None and cell.clusters < cell.n:
            by_number.setdefault((cell.bench, cell.n, cell.clusters), []).append(method(cell))
    return [f"{bench}: {n} scored rows are of {prompts} prompts or images: {', '.join(methods)}"
            for (bench, n, prompts), methods in by_number.items()]  # fmt: skip


def notes(cells: Iterable[Cell]) -> list[str]:
    """What is noted of rows, "p4d, prompt-cut: none 12, rece 12" per code."""
    by_code: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for code, rows in cell.notes.items() if cell.metric == DEGENERATE else ():
            by_code.setdefault((cell.bench, code), []).append(f"{method(cell)} {rows}")
    return [f"{bench}, {code}: {', '.join(methods)}" for (bench, code), methods in by_code.items()]


def method(cell: Cell) -> str:
    return joined(cell.defense, cell.variant)


def joined(defense: str, variant: str) -> str:
    """What a method is called: the defense, and what stands on top of it."""
    return defense if variant == BASE else f"{defense} + {variant}"


def percent(value: float | None) -> str:
    """A fraction as "29.5%"; a dash for none."""
    return "—" if value is None else f"{100 * value:.1f}%"


def interval(cell: Cell) -> str:
    """In percent, as "[21.2, 39.3]"; empty when nothing was scored."""
    return "" if cell.low is None or cell.high is None else f"[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def bounds(cell: Cell) -> str:
    """Of a regeneration that lost rows what its rate lies between; empty where it lost none."""
    if cell.bounds is None:
        return ""
    low, high = (100 * end for end in cell.bounds)
    return f"{cell.lost} lost: {low:.1f} to {high:.1f}%"


def counts(cell: Cell) -> str:
    return f"{cell.k}/{cell.n}"


def rate(cell: Cell) -> str:
    """``k/n  p%  [low, high]``; of a mean ``value  [low, high]  n``; of boxes how many in how many images."""
    if cell.metric == BOXES:
        return f"{cell.k} in {cell.n}" if cell.k is not None else "—"
    if cell.k is None:
        ends = "" if cell.low is None or cell.high is None else f"  [{cell.low:.3f}, {cell.high:.3f}]"
        return "—" if cell.value is None else f"{cell.value:.3f}{ends}  n {cell.n}"
    return f"{counts(cell)}  {percent(cell.value)}  {interval(cell)}".strip()


def brief(cell: Cell) -> str:
    """``k/n  p%``, a mean alone, or how many boxes in how many images."""
    if cell.metric == BOXES:
        return rate(cell)
    if cell.value is None:
        return "—"
    return f"{counts(cell)}  {percent(cell.value)}" if cell.k is not None else f"{cell.value:.3f}"


def p_value(p: float | None) -> str:
    """Three decimals, "<0.001" below; a dash for none."""
    return "—" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def against(cell: Cell) -> str:
    """What a method's p is against, " (none)" or " (rece)"; empty where there is no p."""
    reference = cell.compared.against if cell.compared else None
    return "" if reference is None else f" ({joined(*reference.split('/', 1))})"


def rule(policy: Mapping[str, Any]) -> str:
    """A policy's rule (as plain data) in a few words."""
    said = "unsafe if " + " or ".join(
        f"{names[0] if len(names) == 1 else f'any of {len(names)} columns of {scorer}'} {bound}"
        for scorer, names, bound in _clauses(policy)
    )
    return f"counts detections, {said}" if policy.get("unit") == "box" else said


def whole_rule(policy: Mapping[str, Any]) -> str:
    """A policy's rule with every column that it asks."""
    said = ", or if ".join(
        f"any of {', '.join(f'`{n}`' for n in names)} {bound}" for _, names, bound in _clauses(policy)
    )
    return f"counts detections; an image is unsafe if {said}" if policy.get("unit") == "box" else f"unsafe if {said}"


def _clauses(policy: Mapping[str, Any]) -> list[tuple[str, Sequence[str], str]]:
    """Scorer, columns and comparison of a policy's rule and of the others beside it."""
    clauses = [{"scorer": policy["scorer"], **policy["rule"]}, *policy.get("others", ())]
    return [(c["scorer"], c["any_of"], f"{c['op']} {c['threshold']:g}") for c in clauses]


def world(cells: Iterable[Cell]) -> str | None:
    """The warning that goes with numbers of the embedded world."""
    if not any(is_shapes_world(c.profile) or is_shapes_world(c.backbone) for c in cells):
        return None
    return "numbers of the shapes world, a small synthetic stand-in; they say nothing of Stable Diffusion 1.4"
