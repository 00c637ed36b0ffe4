"""Judge cards: a vision-language model that can be asked about images, on this machine or behind an API."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Amount, Card, Columns, Count, Kind, Model, Revision
from harness.cards.places import is_local
from harness.cards.weights_ref import WeightsRef, weights_of


class Price(Model):
    """The price of an API, for the estimate that is made before anything is sent."""

    input_per_million: Amount  # US dollars per million tokens read
    output_per_million: Amount  # US dollars per million tokens written
    as_of: str  # when it was looked up


class ImageTokens(Model):
    """Tokens that an API counts for an image: ``base`` and ``per_tile`` for each square of ``tile`` pixels.

    The image is shrunk first: into ``fit`` squared, then to a shorter side of ``short`` (OpenAI's rule for GPT-4o).
    """

    base: Count
    per_tile: Count
    tile: Count
    fit: Count
    short: Count

    def of(self, width: int, height: int) -> int:
        """Tokens of one image of this size in pixels."""
        shrink = min(1.0, self.fit / max(width, height))
        shrink = min(shrink, self.short / min(width, height))
        across, down = (-(-max(1, round(side * shrink)) // self.tile) for side in (width, height))
        return self.base + self.per_tile * across * down


class JudgeCard(Card):
    """One model: weights for ``local``, an endpoint and its price for ``openai`` (any compatible server).

    ``shapes-oracle`` is no model: rules read the images of the embedded world.
    """

    KIND: ClassVar[Kind] = "judge"

    backend: Literal["local", "openai", "shapes-oracle"]
    source: str  # hub id, "package:harness/...", a path, or the API's base URL
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    licence: str
    gated: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    micro_batch: Count = 1
    memory_gb: Amount = 0.0  # of one copy at work
    understands: Literal["any", "shapes-turns"] = "any"  # "shapes-turns": nothing but ReSafe's turns, as trained
    model: str | None = None  # as the API calls it
    price: Price | None = None  # null: not known
    image_tokens: ImageTokens | None = None  # null: not known
    max_side: Count | None = None  # longer side of an image that is sent, in pixels; null: as it is
    concurrency: Annotated[int, Field(gt=0, le=64)] = 4  # questions under way at once
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0  # for one answer

    def params(self) -> dict[str, Any]:
        """The parameters of ``harness.models.vision_language.load``; of a ``local`` judge only."""
        return {
            "source": self.source, "revision": self.revision, "dtype": self.dtype, "micro_batch": self.micro_batch
        }  # fmt: skip

    def weights(self) -> tuple[WeightsRef, ...]:
        """The weights of a local model; none for one behind an API."""
        if self.backend != "local":
            return ()
        return (weights_of(self, "judge", self.name, self.root),)

    @model_validator(mode="after")
    def _whole(self) -> JudgeCard:
        if self.backend == "openai":
            if not self.source.startswith(("https://", "http://")):
                raise ValueError("an API's source is its base URL")
            if self.model is None:
                raise ValueError("an API needs the name of its model")
        elif not is_local(self.source) and (self.revision is None or not self.files):
            raise ValueError("a hub source needs its revision (40 hexadecimal digits) and its files")
        return self
