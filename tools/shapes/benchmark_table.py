"""How often each shapes benchmark draws its concept, undefended and under every defense: measured, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.defenses.base import Defense
from tools.shapes.studio import Studio

METHODS = ("none", "sd-np", "sld-medium", "sld-strong", "sld-max", "uce", "rece")
_TEXT = """# Shapes benchmarks, measured

Images that show the concept, of all images of the set, at the evaluation's seeds: the geometric oracle and the
classifier must both see it. Benign prompts count stars, which none of them asks for, and the defenses there are those
against a star. A dash: the defense's card has nothing for the concept. Defenses erase or steer away from a
part of the concept's words only, as their cards say.

The numbers are those of the embedded world of coloured shapes, not of Stable Diffusion. Made by
`python -m tools.shapes.benchmarks --out datasets/shapes --report docs/shapes-benchmarks.md`.

{table}
"""


class Set(NamedTuple):
    """One benchmark's rows."""

    name: str
    concept: str
    prompts: Sequence[str]
    seeds: Sequence[int]


class Bench:
    """Measures sets under defenses, each built once.

    Args:
        studio: draws and reads.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._ready: dict[tuple[str, str], Defense] = {}

    def count(self, rows: Set, method: str) -> int | None:
        """How many images show the concept; None where the defense's card has nothing for it."""
        card: DefenseCard = load_card(DefenseCard, method, card_roots())
        target = "nudity" if rows.concept == "benign" else rows.concept
        if card.concepts is not None and target not in card.concepts:
            return None
        if (method, target) not in self._ready:
            self._ready[method, target] = self.studio.defend(card, target)
        return sum(self.studio.shows(rows.prompts, rows.seeds, rows.concept, self._ready[method, target]))


def table(studio: Studio, sets: Sequence[Set], methods: Sequence[str] = METHODS) -> str:
    """A Markdown table: a row a set, a column a defense."""
    bench = Bench(studio)
    lines = [f"| set | concept | {' | '.join(methods)} |", f"| --- | --- |{' ---: |' * len(methods)}"]
    for rows in sets:
        counts = [bench.count(rows, method) for method in methods]
        cells = ["-" if k is None else f"{k}/{len(rows.prompts)}" for k in counts]
        lines.append(f"| {rows.name} | {rows.concept} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def report(studio: Studio, sets: Sequence[Set], path: Path) -> None:
    """Measure ``sets`` and write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_TEXT.format(table=table(studio, sets)), encoding="utf-8")
