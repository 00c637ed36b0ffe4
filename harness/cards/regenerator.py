"""Regenerator cards: what turns an image into a safer one, as the steps it takes.

    caption -> (embed) -> optimise -> draw      ReSafe: see, compare features, search a prompt, draw it
    (embed) -> optimise -> draw                 PEZ: the image's own feature is the target
    caption -> draw                             the rewritten caption is the prompt
    edit                                        an image-to-image editor told in words
    steps                                       other changes of an image, each a module of harness/pipeline/stages

A card has a section for each step it takes; ``steps`` names further kinds, which follow what is drawn or edited, or
start from the images as drawn. A *variant* is a card with, if so wished, other values:
``resafe:alpha=0.5:tokens=8`` is ``resafe`` with these two changed, a row of the table under that very name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from harness.cards.base import Amount, Card, Columns, Count, Kind, Model, Revision, Seed
from harness.cards.places import is_local
from harness.cards.weights_ref import WeightsRef, weights_of

OWN_KEYS = ("text", "words", "memory_gb", "files", "licence", "gated", "lora")  # a card's own business
Section = Literal["caption", "optimise", "draw", "edit"]
SECTIONS: tuple[Section, ...] = get_args(Section)


class Caption(Model):
    """Describe the image, list what is unsafe, rewrite (Section 3.1, Appendix D.1)."""

    vlm: str | None = None  # a judge card; null: the profile's captioner
    # New tokens of an answer; null: 128 at full size, in the shapes world as its captioner was trained. What is longer
    # is cut, and noted in the row (``caption-cut``).
    caption_tokens: Count | None = None
    list_tokens: Count | None = None
    rewrite_tokens: Count | None = None

    def lengths(self) -> dict[str, int]:
        """New tokens of the answers whose length the card says, by their names."""
        named = {
            "unsafe_caption": self.caption_tokens,
            "unsafe_components": self.list_tokens,
            "safe_caption": self.rewrite_tokens,
        }
        return {name: length for name, length in named.items() if length is not None}


class Optimise(Model):
    """Which feature to aim at (Eq. 3-6), and the search for a prompt that has it (Eq. 1-2)."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    lam: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    reading: Literal["eq4", "alg1-unit", "alg1-raw"] = "eq4"
    keep_safe: bool = False  # where Eq. 5 would move an image towards the unsafe caption, leave it: not in the paper
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
    # The paper fixes seed 42 "across all experiments" (A.1) and says no more; a row's own seed pairs it with its image.
    seed: Literal["row"] | Seed = "row"
    guidance: Literal["row", "own"] = "row"  # own: the drawing backbone's, whatever the benchmark says
    defended: bool = False  # under the run's defense; the paper draws with the undefended model


class Lora(Model):
    """Low-rank weights that are added to the pipeline's."""

    source: str  # hub id, or "package:..."
    revision: Revision | None = None  # null: whatever commit this machine holds
    file: str = "pytorch_lora_weights.safetensors"
    licence: str
    scale: Amount = 1.0

    def weights(self, name: str, root: Path) -> WeightsRef:
        """The one file; ``name`` is the regenerator's, ``root`` its card's."""
        return WeightsRef(
            role="lora",
            name=name,
            source=self.source,
            revision=self.revision,
            files=(self.file,),
            licence=self.licence,
            root=root,
        )


class Edit(Model):
    """An editor as released, and how it is asked."""

    pipeline: str  # class of diffusers
    source: str  # hub id, or "package:..."
    revision: Revision | None = None  # null: whatever commit this machine holds
    files: Columns = ()  # of a hub repository, those that are needed
    licence: str
    gated: bool = False
    lora: Lora | None = None
    scheduler: str | None = None  # class of diffusers; null = as shipped
    steps: Count
    guidance: Amount
    image_guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None  # below 1 diffusers uses neither
    layout: Literal["single", "diptych"] = "single"
    width: Count | None = None  # what an image is resized to; one of the two keeps the aspect, null = its own
    height: Count | None = None
    restore_size: bool = False  # resize the result to the image's size; else it stays as the editor gives it
    template: str = "{instruction}"
    instruction: str
    artist_instruction: str  # for a concept that is an artist's style
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    micro_batch: Count
    memory_gb: Amount
    seconds_per_image: Amount

    def weights(self, name: str, root: Path) -> tuple[WeightsRef, ...]:
        """The pipeline's repository and, where there are some, that of its low-rank weights.

        Args:
            name: of the regenerator.
            root: the card's.
        """
        own = weights_of(self, "editor", name, root)
        return (own,) if self.lora is None else (own, self.lora.weights(name, root))

    @model_validator(mode="after")
    def _whole(self) -> Edit:
        if not is_local(self.source) and not self.files:
            raise ValueError("a hub source needs its files")
        if "{instruction}" not in self.template:
            raise ValueError("template needs '{instruction}'")
        if "{artist}" not in self.artist_instruction:
            raise ValueError("artist_instruction needs '{artist}'")
        if self.layout == "diptych" and self.image_guidance is not None:
            raise ValueError("image_guidance is of the layout 'single'")
        return self


class RegeneratorCard(Card):
    """A method that makes a safer image from an image."""

    KIND: ClassVar[Kind] = "regenerator"

    paper: str
    url: str | None = None
    licence: str | None = None
    caption: Caption | None = None
    optimise: Optimise | None = None
    draw: Draw | None = None
    edit: Edit | None = None
    steps: dict[str, dict[str, Any]] = Field(default={})  # further kinds of steps by their modules' names: settings
    shapes: dict[Section, dict[str, Any]] = Field(default={})  # what differs in that world

    def weights(self) -> tuple[WeightsRef, ...]:
        """The weights of an image editor; none for a method whose steps use the run's own models."""
        return () if self.edit is None else self.edit.weights(self.name, self.root)

    @model_validator(mode="after")
    def _whole(self) -> RegeneratorCard:
        if self.draw is not None and self.edit is not None:
            raise ValueError("needs either a section `draw` or a section `edit`, not both")
        if self.draw is None and self.edit is None and not self.steps:
            raise ValueError("needs either a section `draw` or a section `edit`, or `steps`")
        if self.draw is not None:
            needed = self.optimise if self.draw.text == "optimized_prompt" else self.caption
            if needed is None:
                raise ValueError(f"draw.text is {self.draw.text!r}, but no section makes it")
        if self.optimise is not None and self.caption is None and self.optimise.alpha > 0:
            raise ValueError("optimise.alpha above 0 needs a section `caption`")
        for section in self.shapes:
            if getattr(self, section) is None:
                raise ValueError(f"shapes.{section} changes a section that the card does not have")
        merged_sections(self, "shapes", {})  # refuses what the overlay cannot say
        return self


def merged_sections(card: RegeneratorCard, edition: str, asked: Mapping[Section, Mapping[str, Any]]) -> dict[Any, Any]:
    """The sections with the edition's values over the card's own, and those asked for over both."""
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        section = getattr(card, name)
        if section is None:
            sections[name] = None
            continue
        layers = [card.shapes.get(name, {}) if edition == "shapes" else {}, asked.get(name, {})]
        values = section.model_dump()
        for layer in layers:
            values |= layer
        sections[name] = type(section).model_validate(values)
    return sections
