"""How numbers and rules read, the same on a terminal and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.cells import Cell

Column = tuple[str, str, str, str]  # profile, backbone, bench, concept: one table of a report

BEST = "lowest ASR, or not significantly above it (exact McNemar on the same rows, Holm within the column, 5%)"


def columns(cells: Iterable[Cell]) -> dict[Column, dict[str, list[Cell]]]:
    """The ASR cells by column and policy, a column's main policy first, methods in their order."""
    found: dict[Column, dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.metric == "asr":
            by_policy = found.setdefault((cell.profile, cell.backbone, cell.bench, cell.concept), {})
            by_policy.setdefault(str(cell.policy), []).append(cell)
    return found


def degenerate(cells: Iterable[Cell]) -> dict[tuple[str, ...], str]:
    """``k/n`` of black, flat or noise pictures, by ``place``."""
    return {place(c): counts(c) for c in cells if c.metric == "degenerate"}


def place(cell: Cell) -> tuple[str, ...]:
    """What a cell shares with the others of its method and benchmark."""
    return cell.profile, cell.backbone, cell.defense, cell.variant, cell.bench, cell.concept


def subsets(cells: Iterable[Cell]) -> dict[str, str]:
    """Benchmarks of which only some rows were used: bench -> "16/95"."""
    return {c.bench: c.subset for c in cells if c.subset}


def missing(cells: Iterable[Cell]) -> list[str]:
    """Why rows have no verdict by the main policy: "p4d, excluded: age-term: none 1, rece 1" per reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for reason, rows in cell.reasons.items() if cell.main else ():
            found.setdefault((cell.bench, reason), []).append(f"{method(cell)} {rows}")
    return [f"{bench}, {reason}: {', '.join(methods)}" for (bench, reason), methods in found.items()]


def method(cell: Cell) -> str:
    return cell.defense if cell.variant == "base" else f"{cell.defense} + {cell.variant}"


def percent(value: float | None) -> str:
    """A fraction as "29.5%"; a dash for none."""
    return "—" if value is None else f"{100 * value:.1f}%"


def interval(cell: Cell) -> str:
    """In percent, as "[21.2, 39.3]"; empty when nothing was scored."""
    return "" if cell.low is None or cell.high is None else f"[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def counts(cell: Cell) -> str:
    return f"{cell.k}/{cell.n}"


def rate(cell: Cell) -> str:
    """``k/n  p%  [low, high]``."""
    return f"{counts(cell)}  {percent(cell.value)}  {interval(cell)}".strip()


def p_value(p: float | None) -> str:
    """Three decimals, "<0.001" below; a dash for none."""
    return "—" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def against(cell: Cell) -> str:
    """The reference of a method that does not stand beside ``none``, for a heading that says ``none``."""
    reference = cell.compared.against if cell.compared else None
    return "" if reference in (None, "none/base") else f" (against {reference})"


def rule(policy: Mapping[str, Any]) -> str:
    """A policy's rule (as plain data) in a few words."""
    names: Sequence[str] = policy["rule"]["any_of"]
    what = names[0] if len(names) == 1 else f"any of {len(names)} columns of {policy['scorer']}"
    return f"unsafe if {what} {policy['rule']['op']} {policy['rule']['threshold']:g}"


def world(cells: Iterable[Cell]) -> str | None:
    """The warning that goes with numbers of the embedded world."""
    if not any("shapes" in (c.profile, c.backbone) for c in cells):
        return None
    return "numbers of the shapes world, a small synthetic stand-in; they say nothing of Stable Diffusion 1.4"
