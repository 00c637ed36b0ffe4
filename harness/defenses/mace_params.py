"""The parameters of a MACE card; the method is in `mace`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from harness.defenses.base import INCOMPLETE, BuiltParams
from harness.defenses.uce import Template, Text


class MaceParams(BuiltParams):
    """Parameters that a card of MACE may set."""

    variant: Literal["released", "described"] = "released"
    erase: tuple[Text, ...] = Field(min_length=1)  # each with a low-rank change of its own
    target: Text  # what takes the concepts' place in the first stage
    templates: tuple[Template, ...] = Field(min_length=1)  # prompts of a concept
    preserve: tuple[str, ...] | str | None = None  # general captions, or a file with one a line; null: none
    domain: tuple[str, ...] | str | None = None  # captions of the concepts' own domain
    domain_scale: float = Field(0.0, ge=0)  # how much one of these counts beside a general one
    lam: float = Field(0.0, ge=0)  # towards the old weights; 0 needs captions that span all embeddings
    refine_scale: float = Field(ge=0)  # of the captions in the first stage
    fuse_scale: float = Field(ge=0)  # of the captions in the third
    image_template: Template = "a photo of the {}"
    images: int = Field(8, ge=1)  # drawn for each concept
    mask: Literal["segmenter", "attention", "everywhere"]  # who says where in an image the concept shows
    mask_threshold: float = Field(0.3, ge=0, le=1)  # of the concept's attention, scaled to 0..1
    mask_side: int = Field(16, ge=1)  # pixels; of attention maps, those of this side count
    detector: str = "hub:IDEA-Research/grounding-dino-base"  # of the segmenter; as transformers loads it
    segmenter: str = "hub:facebook/sam-vit-huge"
    rank: int = Field(1, ge=1)
    steps: int = Field(ge=0)  # of each low-rank change
    lr: float = Field(gt=0)
    focal: bool = False  # draw timesteps where the concept takes shape, not uniformly
    end_tokens: bool = True  # withdraw attention from the end token, and the padding that has its id, too
    batch: int = Field(1, ge=1)
    seed: int = Field(2024, ge=0)

    @model_validator(mode="after")
    def _unique(self) -> MaceParams:
        if self.weights is None and self.lam == 0 and self.preserve is None:
            raise PydanticCustomError(
                INCOMPLETE, "with lam 0 the edits need captions: a file in `preserve`, with one a line (or lam above 0)"
            )
        return self
