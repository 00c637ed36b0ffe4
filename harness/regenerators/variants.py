"""Regenerators as a run uses them: a card, perhaps with values overridden, as in ``resafe:alpha=0.5:tokens=8``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.cards import overrides
from harness.cards.load import load_card
from harness.cards.regenerator import (
    OWN_KEYS,
    SECTIONS,
    Caption,
    Draw,
    Edit,
    Optimise,
    RegeneratorCard,
    Section,
    merged_sections,
)
from harness.cards.yaml_file import show
from harness.errors import UserError

NONE = "none"


@dataclass(frozen=True)
class Regenerator:
    """A regenerator card resolved for one run: its edition's values, overridden by those of the command line."""

    variant: str  # its name in the tables
    card: RegeneratorCard
    caption: Caption | None
    optimise: Optimise | None
    draw: Draw | None
    edit: Edit | None

    def method(self) -> dict[str, Any]:
        """The settings that a cell records beside the method's name, such as alpha, lambda and the number of tokens."""
        settings: dict[str, Any] = {}
        if self.optimise is not None:
            settings |= {"alpha": self.optimise.alpha, "lam": self.optimise.lam, "tokens": self.optimise.tokens,
                      "iterations": self.optimise.iterations}  # fmt: skip
        if self.draw is not None and self.draw.defended:
            settings["drawn by"] = "the defended backbone"
        if self.draw is not None and self.draw.backbone is not None:
            settings["drawn by"] = self.draw.backbone
        if self.draw is not None and self.draw.seed != "row":
            settings["drawing seed"] = self.draw.seed
        if self.draw is not None and self.draw.guidance == "own":
            settings["drawing guidance"] = "the backbone's own"
        for kind, values in self.card.steps.items():
            settings |= {f"{kind} {key}": value for key, value in values.items()}
        return settings

    def values(self) -> dict[str, Any]:
        """The value of everything that a name may change, by the key that the name uses: ``alpha``, ``draw.seed``."""
        sections: dict[Section, Any] = {name: getattr(self, name) for name in SECTIONS}
        return {shown: getattr(sections[section], key) for shown, (section, key) in _homes(sections).items()}

    def deviations(self) -> dict[str, Any]:
        """Settings that depart from the published procedure; a table of the paper leaves out numbers that have any."""
        departures = []
        if self.optimise is not None and self.optimise.plateau is not None:
            departures.append(f"stops after {self.optimise.plateau} iterations without improvement")
        if self.optimise is not None and self.optimise.keep_safe:
            departures.append("leaves images that are nearer to the safe caption")
        return {"deviation": "; ".join(departures)} if departures else {}

    def banned(self, concept: str) -> tuple[str, ...]:
        """Words that no optimised prompt may hold, beside age terms.

        Raises:
            UserError: the concept's are to be banned, and the card lists none.
        """
        if self.optimise is None or not self.optimise.ban_concept:
            return ()
        if concept not in self.optimise.words:
            raise UserError(
                f"regenerator {self.variant!r} is to ban the words of concept {concept!r}, and its card lists some for "
                f"{', '.join(self.optimise.words)} only; see {show(self.card.path)}"
            )
        return self.optimise.words[concept]

    def admits(self, edition: str, concept: str) -> bool:
        """Whether the method knows how to remove ``concept``: captions are rewritten concept by concept."""
        if self.caption is None:
            return True
        from harness.regenerators import questions

        return concept in questions.concepts(edition)


def choose(specs: Sequence[str], edition: str, roots: Sequence[Path]) -> list[Regenerator]:
    """The regenerators that ``specs`` name, without repeats; empty for "none".

    Args:
        specs: card names, each with ``:key=value`` for what shall differ.
        edition: the profile's, ``paper`` or ``shapes``.

    Raises:
        UserError: an unknown name or key, a bad value, "none" beside others.
    """
    if NONE in specs:
        if len(specs) > 1:
            raise UserError(f"--regen: 'none' beside {', '.join(s for s in specs if s != NONE)}")
        return []
    regenerators = [_regenerator(spec, edition, roots) for spec in specs]
    return list({r.variant: r for r in regenerators}.values())


def _homes(sections: Mapping[Section, Any]) -> dict[str, tuple[Section, str]]:
    """Section and key of what a name may change; a key that two sections have is named with the later one's."""
    homes: dict[str, tuple[Section, str]] = {}
    for section in SECTIONS:
        for key in type(sections[section]).model_fields if sections[section] is not None else ():
            if key not in OWN_KEYS:
                homes[f"{section}.{key}" if key in homes else key] = (section, key)
    return homes


def _regenerator(spec: str, edition: str, roots: Sequence[Path]) -> Regenerator:
    name, asked = overrides.parse(spec, "--regen")
    card = load_card(RegeneratorCard, name, roots)
    plain = merged_sections(card, edition, {})
    homes = _homes(plain)
    overrides.known(spec, "--regen", asked, list(homes), card.path)
    by_section: dict[Section, dict[str, str]] = {}
    for name_of_key in sorted(asked, key=list(homes).index):
        section, key = homes[name_of_key]
        by_section.setdefault(section, {})[key] = asked[name_of_key]
    try:
        changed = merged_sections(card, edition, by_section)
    except ValidationError as error:
        raise overrides.refused(spec, "--regen", error) from None
    differ = [
        f":{shown}={overrides.said(getattr(changed[section], key))}"
        for shown, (section, key) in homes.items()
        if shown in asked and getattr(changed[section], key) != getattr(plain[section], key)
    ]
    if card.caption is None and changed["optimise"] is not None and changed["optimise"].alpha > 0:
        raise UserError(
            f"--regen {spec!r}: alpha above 0 mixes in a caption, and {name} makes none; see {show(card.path)}"
        )
    return Regenerator(name + "".join(differ), card, **changed)
