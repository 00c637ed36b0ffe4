"""Backbone cards: a text-to-image pipeline as released, and how it is sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Amount, Card, Columns, Count, Kind, Model, Revision
from harness.cards.places import is_local
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

SINGLE_FILES = (".safetensors", ".ckpt")  # of a whole pipeline in the names of its original code
_UNPINNED = "a hub source needs its revision (40 hexadecimal digits) and its files"


class Configuration(Model):
    """Where the configuration and the tokenizer come from that a single file of weights goes with."""

    source: str  # a folder of diffusers, or a hub id
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    name: str = "configuration"  # of the backbone card whose files these are

    @model_validator(mode="after")
    def _pinned(self) -> Configuration:
        if not is_local(self.source) and (self.revision is None or not self.files):
            raise ValueError(_UNPINNED)
        return self


class BackboneCard(Card):
    """A text-to-image pipeline as released, and how it is sampled."""

    KIND: ClassVar[Kind] = "backbone"

    pipeline: str  # class of diffusers
    source: str  # hub id, "package:harness/...", or a path: a folder of diffusers or one file of weights
    revision: Revision | None = None  # of a hub repository; null, if said so: whatever commit this machine holds
    files: Columns = ()  # of a hub repository, those that are needed
    configuration: Configuration | None = None  # of a single file; null: of the card that its names fit
    variant: str | None = None  # "fp16": weights are read from model.fp16.safetensors where there is such a file
    licence: str
    gated: bool = False
    steps: Annotated[int, Field(gt=0, le=1000)]  # schedulers of diffusion models have a thousand
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
        said = self.revision is not None or "revision" in self.model_fields_set
        if not is_local(self.source) and not (said and self.files):
            raise ValueError(f"{_UNPINNED}; `revision: null` takes whatever commit this machine holds")
        return self

    @property
    def is_single_file(self) -> bool:
        """Whether the weights are one file of the user's own, without configuration and tokenizer."""
        return is_local(self.source) and self.source.endswith(SINGLE_FILES)

    def weights(self) -> tuple[WeightsRef, ...]:
        """The pipeline's own repository, folder or file; of a single file also the configuration it goes with."""
        own = weights_of(self, "backbone", self.name, self.root)
        if self.configuration is None:
            return (own,)
        beside = WeightsRef(
            role="configuration",
            name=self.configuration.name,
            source=self.configuration.source,
            revision=self.configuration.revision,
            files=self.configuration.files,
            licence=self.licence,
            root=self.root,
        )
        return own, beside

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
