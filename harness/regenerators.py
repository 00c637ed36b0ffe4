"""Regenerator cards: what turns a picture into a safer one, as the steps it takes.

    caption -> (embed) -> optimise -> draw      ReSafe: see, compare features, search a prompt, draw it
    (embed) -> optimise -> draw                 PEZ: the picture's own feature is the target
    caption -> draw                             the rewritten caption is the prompt
    edit                                        an image-to-image editor told in words

A card has a section for each step it takes. A *variant* is a card with, if so wished, other values:
``resafe:alpha=0.5:tokens=8`` is ``resafe`` with these two changed, a row of the table under that very name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from harness import cards, overrides
from harness.cardfile import show
from harness.cards import Amount, Card, Count, Model
from harness.editors import Edit
from harness.errors import UserError

NONE = "none"
_OWN = ("text", "words", "memory_gb", "files", "licence", "gated", "lora")  # a card's own business
Section = Literal["caption", "optimise", "draw", "edit"]
SECTIONS: tuple[Section, ...] = get_args(Section)


class Caption(Model):
    """Describe the picture, list what is unsafe, rewrite (Section 3.1, Appendix D.1)."""

    vlm: str | None = None  # a judge card; null: the profile's captioner


class Optimise(Model):
    """Which feature to aim at (Eq. 3-6), and the search for a prompt that has it (Eq. 1-2)."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    lam: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    reading: Literal["eq4", "alg1-unit", "alg1-raw"] = "eq4"
    keep_safe: bool = True  # where Eq. 5 would move a picture towards the unsafe caption, leave it
    tokens: Count = 16
    iterations: Count = 3000
    nearest: Literal["cosine", "l2"] = "cosine"
    lr: Amount = 0.5
    weight_decay: Amount = 0.1
    seed: Annotated[int, Field(ge=0)] = 42
    plateau: Count | None = None  # steps without improvement after which a row stops: not the published procedure
    ban_concept: bool = False  # never choose a word that names the concept, beside age terms, which never are
    words: dict[str, tuple[str, ...]] = Field(default={})  # those words, by concept
    micro_batch: Count = 64
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"  # of the text tower
    search: Literal["float32", "bfloat16"] = "float32"  # of the product that finds the nearest tokens
    compile: Literal["off", "inductor", "graph", "inductor-graph"] = "off"
    memory_gb: Amount = 4

    @model_validator(mode="after")
    def _whole(self) -> Optimise:
        if self.ban_concept and not self.words:
            raise ValueError("ban_concept bans nothing: the card lists no `words`")
        return self


class Draw(Model):
    """Draw a prompt with a backbone (Section 3.3)."""

    text: Literal["optimized_prompt", "safe_caption"]
    backbone: str | None = None  # null: the run's
    defended: bool = False  # under the run's defense; the paper draws with the undefended model


class RegeneratorCard(Card):
    """A method that makes a safer picture from a picture."""

    paper: str
    url: str | None = None
    licence: str | None = None
    caption: Caption | None = None
    optimise: Optimise | None = None
    draw: Draw | None = None
    edit: Edit | None = None
    shapes: dict[Section, dict[str, Any]] = Field(default={})  # what differs in that world

    @model_validator(mode="after")
    def _whole(self) -> RegeneratorCard:
        if (self.draw is None) == (self.edit is None):
            raise ValueError("needs either a section `draw` or a section `edit`")
        if self.draw is not None:
            needed = self.optimise if self.draw.text == "optimized_prompt" else self.caption
            if needed is None:
                raise ValueError(f"draw.text is {self.draw.text!r}, but no section makes it")
        if self.optimise is not None and self.caption is None and self.optimise.alpha > 0:
            raise ValueError("optimise.alpha above 0 needs a section `caption`")
        for section in self.shapes:
            if getattr(self, section) is None:
                raise ValueError(f"shapes.{section} changes a section that the card does not have")
        _merged(self, "shapes", {})  # refuses what the overlay cannot say
        return self


@dataclass(frozen=True)
class Regenerator:
    """A card as one run uses it: its edition's values, and those asked for on the command line."""

    variant: str  # its name in the tables
    card: RegeneratorCard
    caption: Caption | None
    optimise: Optimise | None
    draw: Draw | None
    edit: Edit | None

    def method(self) -> dict[str, Any]:
        """What a cell says of the method beyond its name."""
        found: dict[str, Any] = {}
        if self.optimise is not None:
            found |= {"alpha": self.optimise.alpha, "lam": self.optimise.lam, "tokens": self.optimise.tokens,
                      "iterations": self.optimise.iterations}  # fmt: skip
        if self.draw is not None and self.draw.defended:
            found["drawn by"] = "the defended backbone"
        if self.draw is not None and self.draw.backbone is not None:
            found["drawn by"] = self.draw.backbone
        return found

    def deviations(self) -> dict[str, Any]:
        """What departs from the published procedure, so that no table of the paper takes the number for its own."""
        if self.optimise is None or self.optimise.plateau is None:
            return {}
        return {"deviation": f"stops after {self.optimise.plateau} iterations without improvement"}

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
        from harness.resafe import turns

        return concept in turns.concepts(edition)


def choose(specs: Sequence[str], edition: str, roots: Sequence[Path]) -> list[Regenerator]:
    """The regenerators that ``specs`` name, each once; "none" names none.

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
    found = [_regenerator(spec, edition, roots) for spec in specs]
    return list({r.variant: r for r in found}.values())


def _regenerator(spec: str, edition: str, roots: Sequence[Path]) -> Regenerator:
    name, asked = overrides.parse(spec, "--regen")
    card = cards.load("regenerator", name, roots)
    plain = _merged(card, edition, {})
    homes = {
        key: section
        for section, held in plain.items()
        if held is not None
        for key in type(held).model_fields
        if key not in _OWN
    }
    overrides.known(spec, "--regen", asked, list(homes), card.path)
    by_section: dict[str, dict[str, str]] = {}
    for key in sorted(asked, key=list(homes).index):
        by_section.setdefault(homes[key], {})[key] = asked[key]
    try:
        changed = _merged(card, edition, by_section)
    except ValidationError as error:
        raise overrides.refused(spec, "--regen", error) from None
    differ = [
        f":{key}={overrides.said(getattr(changed[section], key))}"
        for section, keys in by_section.items()
        for key in keys
        if getattr(changed[section], key) != getattr(plain[section], key)
    ]
    if card.caption is None and changed["optimise"] is not None and changed["optimise"].alpha > 0:
        raise UserError(
            f"--regen {spec!r}: alpha above 0 mixes in a caption, and {name} makes none; see {show(card.path)}"
        )
    return Regenerator(name + "".join(differ), card, **changed)


def _merged(card: RegeneratorCard, edition: str, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections with the edition's values over the card's own, and those asked for over both."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        section = getattr(card, name)
        if section is None:
            found[name] = None
            continue
        layers = [card.shapes.get(name, {}) if edition == "shapes" else {}, asked.get(name, {})]
        values = section.model_dump()
        for layer in layers:
            values |= layer
        found[name] = type(section).model_validate(values)
    return found
