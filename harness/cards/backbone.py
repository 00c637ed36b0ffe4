"""Backbone cards: a text-to-image pipeline as released, and how it is sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Amount, Card, Columns, Count, Kind, Revision
from harness.cards.weights_ref import WeightsRef, weights_of

# Schedulers of diffusers that each family of pipelines can be sampled with; less those that no seed can repeat.
_DIFFUSION = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler",)
_SCHEDULERS = {
    "StableDiffusionPipeline": _DIFFUSION,
    "StableDiffusionXLPipeline": _DIFFUSION,
    "StableDiffusion3Pipeline": _FLOW_MATCHING,
    "FluxPipeline": _FLOW_MATCHING,
}


class BackboneCard(Card):
    """A text-to-image pipeline as released, and how it is sampled."""

    KIND: ClassVar[Kind] = "backbone"

    pipeline: str  # class of diffusers
    source: str  # hub id, or "package:harness/..."
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    variant: str | None = None  # "fp16": weights are read from model.fp16.safetensors where there is such a file
    licence: str
    gated: bool = False
    steps: Count
    guidance: Amount  # as the pipeline means it: FLUX.1 [dev]'s is distilled, an input of the network
    true_cfg: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1  # FLUX: guidance away from a second text; 1 = none
    max_sequence_length: Count | None = None  # tokens that the T5 text encoder sees; null = the pipeline's default
    width: Count
    height: Count
    scheduler: str | None = None  # class of diffusers; null = as shipped
    micro_batch: Count
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    memory_gb: Amount  # of one copy at work
    seconds_per_image: Amount  # for `harness plan`

    @model_validator(mode="after")
    def _pinned(self) -> BackboneCard:
        if not self.source.startswith("package:") and (self.revision is None or not self.files):
            raise ValueError("a hub source needs its revision (40 hexadecimal digits) and its files")
        return self

    def weights(self) -> tuple[WeightsRef, ...]:
        """The pipeline's own repository or folder."""
        return (weights_of(self, "backbone", self.name, self.root),)

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Schedulers that the pipeline can be sampled with; empty where that is known only once it is loaded."""
        return _SCHEDULERS.get(self.pipeline, ())

    @property
    def offers(self) -> tuple[str, ...]:
        """What a defense may require of the pipeline (``NEEDS`` of a mechanism).

        ``unet``: of Stable Diffusion 1 and 2, with their one text encoder. ``prompt_tokens``: theirs, SDXL's or Stable
        Diffusion 3's. ``negative_prompt``: not of a distilled model, which reads none unless ``true_cfg`` is above 1.
        """
        unet = ("unet",) if self.pipeline == "StableDiffusionPipeline" else ()
        tokens = ("prompt_tokens",) if self.pipeline.startswith("StableDiffusion") else ()
        negative = self.pipeline != "FluxPipeline" or self.true_cfg > 1
        return (*unet, *tokens, *(("negative_prompt",) if negative else ()))
