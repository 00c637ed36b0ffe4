"""What the scorers that compare captions have in common: describe two images, compare the captions' CLIP features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.models.refusals import refused
from harness.models.vision_language import Turn
from harness.scorers import options
from harness.scorers._clip import LARGE, LIBRARIES, cosine
from harness.scorers._sources import Model, micro_batch, model
from harness.scorers.batching import Image, pairs_in_micro_batches

if TYPE_CHECKING:
    from harness.models.clip import Clip
    from harness.models.vision_language import Captioner

__all__ = ["LIBRARIES"]

CAPTION = Turn("caption", "Describe this image in a caption.", 128)  # ReSafe, Appendix D.1
MICRO_BATCH = 8
HUB = (("source", "revision"), ("captioner", "captioner_revision"))  # parameters that name models
DEFAULTS: dict[str, Any] = {  # of CLIP; then of the captioner
    **LARGE,
    "micro_batch": MICRO_BATCH,
    "captioner": "Qwen/Qwen2-VL-7B-Instruct",
    "captioner_revision": "eed13092ef92e448dd6875b2a00151bd3f7db0ac",
    "captioner_dtype": "bfloat16",
}


def columns(stem: str) -> dict[str, pa.DataType]:
    """Cosine of the two captions' features, and whether one of them was cut to CLIP's window."""
    return {f"{stem}_cosine": pa.float32(), f"{stem}_cut": pa.bool_()}


def files(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Path]:
    """Of both models, where they lie in folders.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return [*model(stem, params, defaults).files, *_captioner(stem, params, defaults).files]


def _captioner(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> Model:
    """The model that describes images."""
    options(stem, params, defaults)  # refuses what is no parameter
    renamed = {"captioner": "source", "captioner_revision": "revision"}
    own, usual = ({new: given[old] for old, new in renamed.items() if old in given} for given in (params, defaults))
    return model(stem, own, usual)


def load(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> Captions:
    """Captioner and CLIP in memory.

    Raises:
        UserError: an unknown parameter, or weights that are not on this machine.
    """
    from harness.models import clip, vision_language

    chosen = options(stem, params, defaults)
    size = micro_batch(stem, chosen["micro_batch"])
    describing, comparing = _captioner(stem, params, defaults), model(stem, params, defaults)
    asked = {"source": describing.source, "revision": describing.revision, "dtype": chosen["captioner_dtype"]}
    read = {"source": comparing.source, "revision": comparing.revision, "dtype": chosen["dtype"]}
    return Captions(
        stem,
        vision_language.load({**asked, "micro_batch": size}, chosen["device"]),
        clip.load({**read, "micro_batch": 2 * size}, chosen["device"]),
    )


class Captions:
    """Cosine of the CLIP features of two captions, an image's and its reference's, in [-1, 1].

    An image that the captioner refuses to describe, or says nothing of, has no score: two refusals are alike.

    Args:
        stem: of the scorer, whose columns are ``columns``.
        captioner: describes both images.
        clip: its text tower reads both captions.
    """

    def __init__(self, stem: str, captioner: Captioner, clip: Clip) -> None:
        self.stem, self._captioner, self._clip = stem, captioner, clip

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        size = self._captioner.micro_batch
        return pairs_in_micro_batches(self.stem, images, references, lambda *both: both, self._compute, size)

    def _compute(self, pairs: list[tuple[Image, Image]]) -> list[dict[str, Any]]:
        first, second = (self._describe([pair[side] for pair in pairs]) for side in (0, 1))
        features, cut = self._clip.texts([*first, *second])
        read, count = features.double().cpu().numpy(), len(pairs)
        rows: list[dict[str, Any]] = []
        for i, (caption, other) in enumerate(zip(first, second, strict=True)):
            value = cosine(read[i], read[count + i])
            if refused(caption) or refused(other) or value is None:
                code = "caption-refused" if refused(caption) else "reference-caption-refused"
                rows.append({f"{self.stem}_error": code if value is not None else "not-finite"})
            else:
                rows.append({f"{self.stem}_cosine": value, f"{self.stem}_cut": cut[i] or cut[count + i]})
        return rows

    def _describe(self, images: list[Image]) -> list[str]:
        return [said for (said,) in self._captioner.converse(images, [CAPTION])]
