"""Sweep cards: one evaluation over many settings, as ``harness sweep`` says it in options.

    defenses: [rece]
    benches: [ring-a-bell-k77]
    set: {regen.alpha: [0.3, 0.5, 0.7], regen.tokens: [8, 16]}

Each key of ``set`` is an *axis*: a parameter of the defenses (``defense.steps``), of the regenerators (``regen.alpha``)
or of the backbone (``backbone.guidance``), or ``captioner``, or what stands in a list above (``defense``, ``seed``).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Card, Columns, Count, Kind, Seed

Mode = Literal["product", "zip", "one-at-a-time"]
Value = str | int | float | bool | None


class SweepCard(Card):
    """Settings to be compared: lists, axes, and how they are combined."""

    KIND: ClassVar[Kind] = "sweep"

    paper: str | None = None  # where it comes from
    profile: str | None = None  # null: --profile
    defenses: Annotated[Columns, Field(min_length=1)]
    benches: Annotated[Columns, Field(min_length=1)]
    backbones: Columns = ()  # none: the profile's
    regenerators: Columns = ()  # none: the profile's
    seeds: tuple[Seed, ...] = ()  # each for every row, instead of the rows' own
    concept: str | None = None
    limit: Count | None = None
    mode: Mode = "product"  # of the axes: all combinations, side by side, or each alone around the cards' own values
    set: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(default={})

    @model_validator(mode="after")
    def _whole(self) -> SweepCard:
        if self.mode != "product" and not self.set:
            raise ValueError(f"mode {self.mode!r} is of axes, and `set` names none")
        return self
