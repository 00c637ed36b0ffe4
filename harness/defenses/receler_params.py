"""The parameters of a Receler card; the method is in `receler`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.defenses.base import BuiltParams

Text = Annotated[str, Field(pattern=r"\S")]


class RecelerParams(BuiltParams):
    """Parameters that a card of Receler may set."""

    variant: Literal["described", "released"] = "described"
    erase: tuple[Text, ...] = Field(min_length=1)  # one of them is drawn at each step
    rank: int = Field(128, ge=1)
    steps: int = Field(500, ge=0)
    lr: float = Field(3e-4, gt=0)
    eta: float = Field(1.0, ge=0)
    locality: float = Field(0.1, ge=0)
    mask_threshold: float = Field(0.1, ge=0, le=1)  # of the concept's attention, scaled to 0..1
    mask_side: int = Field(16, ge=1)  # pixels; of attention maps, those of this side show the concept's places
    sampler_steps: int = Field(50, gt=1)
    guidance: float = 3.0  # while x is made
    adversarial_tokens: int = Field(16, ge=1)
    adversarial_steps: int = Field(50, ge=1)  # before each step of the erasers
    adversarial_lr: float = Field(0.1, gt=0)
    adversarial_decay: float = Field(0.1, ge=0)
    batch: int = Field(1, gt=0)  # latents a step, all at one noise level; the paper's is 1
    seed: int = Field(0, ge=0)
