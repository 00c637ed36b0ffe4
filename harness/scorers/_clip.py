"""What the scorers that read CLIP have in common: loading it, and cosines of images and of images and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.scorers import options
from harness.scorers._sources import micro_batch, model
from harness.scorers.batching import Image, pairs_in_micro_batches, texts_in_micro_batches

if TYPE_CHECKING:
    from harness.models.clip import Clip

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")
MICRO_BATCH = 16
LARGE: dict[str, Any] = {
    "source": "openai/clip-vit-large-patch14",
    "revision": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "dtype": "float32",
    "micro_batch": MICRO_BATCH,
    "device": "cpu",
}

Array = NDArray[np.float64]


def load_clip(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> Clip:
    """The CLIP model chosen by the parameters ``source``, ``revision``, ``dtype``, ``micro_batch`` and ``device``.

    Raises:
        UserError: an unknown parameter or dtype, or weights that are not on this machine.
    """
    from harness.models import clip

    chosen = options(stem, params, defaults)
    weights = model(stem, params, defaults)
    size = micro_batch(stem, chosen["micro_batch"])
    settings = {"source": weights.source, "revision": weights.revision, "dtype": chosen["dtype"], "micro_batch": size}
    return clip.load(settings, chosen["device"])


class Cosine:
    """Cosine of the features of an image and its reference, in [-1, 1].

    Args:
        stem: of the scorer; its column is ``<stem>_cosine``.
        features: of images, (n, d).
        micro_batch: how many images it is given at once.
    """

    def __init__(self, stem: str, features: Callable[[list[Image]], Array], micro_batch: int) -> None:
        self.stem, self._features, self.micro_batch = stem, features, micro_batch

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        return pairs_in_micro_batches(
            self.stem, images, references, lambda image, reference: (image, reference), self._compute, self.micro_batch
        )

    def _compute(self, pairs: list[tuple[Image, Image]]) -> list[dict[str, Any]]:
        # An image stands at the same place of two batches of one size, so that one with itself gives exactly 1.
        first, second = (self._features([pair[side] for pair in pairs]) for side in (0, 1))
        return [self._row(a, b) for a, b in zip(first, second, strict=True)]

    def _row(self, first: Array, second: Array) -> dict[str, Any]:
        value = cosine(first, second)
        return {f"{self.stem}_cosine": value} if value is not None else {f"{self.stem}_error": "not-finite"}


def score_columns(stem: str) -> dict[str, pa.DataType]:
    """The columns of a ``Score``."""
    return {f"{stem}_cosine": pa.float32(), f"{stem}_percent": pa.float32(), f"{stem}_cut": pa.bool_()}


class Score:
    """Cosine of an image's and a text's features, also as 100 max(cosine, 0), and whether the text was cut.

    Args:
        stem: of the scorer, whose columns are ``score_columns``.
        clip: both towers.
    """

    def __init__(self, stem: str, clip: Clip) -> None:
        self.stem, self._clip = stem, clip

    def __call__(self, images: Sequence[Image], texts: Sequence[str | None]) -> dict[str, list[Any]]:
        size = self._clip.micro_batch
        return texts_in_micro_batches(self.stem, images, texts, lambda *both: both, self._compute, size)

    def _compute(self, batch: list[tuple[Image, str]]) -> list[dict[str, Any]]:
        images = self._clip.images([image for image, _ in batch]).double().cpu().numpy()
        features, cut = self._clip.texts([text for _, text in batch])
        texts = features.double().cpu().numpy()
        return [self._row(*row) for row in zip(images, texts, cut, strict=True)]

    def _row(self, image: Array, text: Array, cut: bool) -> dict[str, Any]:
        value = cosine(image, text)
        if value is None:
            return {f"{self.stem}_error": "not-finite"}
        return dict(zip(score_columns(self.stem), (value, 100 * max(value, 0.0), cut), strict=True))


def cosine(first: Array, second: Array) -> float | None:
    """Cosine of two feature vectors (d,); None where one of them is not finite or has length 0."""
    if not (np.isfinite(first).all() and np.isfinite(second).all() and first.any() and second.any()):
        return None
    value = first @ second / np.sqrt((first @ first) * (second @ second))
    return float(np.clip(value, -1, 1))


def image_features(clip: Clip) -> Callable[[list[Image]], Array]:
    """The image tower as a function of images, in float64."""

    def features(batch: list[Image]) -> Array:
        vectors: Array = clip.images(batch).double().cpu().numpy()
        return vectors

    return features
