"""The embed stage: CLIP's features of each image and of its two captions, as they are, not normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch.nn.functional import cosine_similarity

from harness.models import clip
from harness.pipeline.stages.images import decode, drawn, one_thread
from harness.pipeline.stages.memory import fitting
from harness.store.schema import KEY, LINEAGE

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 40
READS_IMAGES = True
GPU = True
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")

_FEATURE = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("defense", pa.string()),
        ("variant", pa.string()),
        ("f_image", _FEATURE),  # (d,); null where there is no image, or captions were asked for and failed
        ("f_unsafe", _FEATURE),  # of the caption as seen; null where no captions are asked for
        ("f_safe", _FEATURE),  # of the rewritten caption
        LINEAGE.field("unsafe_caption_cosine"),
        LINEAGE.field("safe_caption_cosine"),
        ("embed_note", pa.string()),
        ("embed_failure", pa.string()),
    ]
)


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Embed:
    """CLIP, both towers."""
    if isinstance(previous, Embed) and previous.held == worker["clip"]:
        return previous
    one_thread(context.device)
    return Embed(clip.load(worker["clip"], context.device), dict(worker["clip"]))


class Embed:
    """CLIP at work."""

    def __init__(self, model: clip.Clip, held: dict[str, Any]) -> None:
        self._clip, self.held = model, held

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Raises: TransientError: out of memory, with the micro-batch that would fit."""
        with fitting(self._clip.micro_batch, "clip.micro_batch", "the profile's card"):
            return self._embedded(rows)

    def _embedded(self, rows: pa.Table) -> pa.Table:
        captioned = "safe_caption" in rows.column_names
        entries = rows.select(list(KEY)).to_pylist()
        spoken = [True] * len(entries)
        if captioned:
            spoken = [failure is None for failure in rows["caption_failure"].to_pylist()]
        seen = {i: data for i, data in enumerate(drawn(rows)) if data is not None and spoken[i]}
        places = list(seen)
        if places:
            images = self._clip.images([decode(data) for data in seen.values()])
            self._put(entries, places, "f_image", images)
            for column, text in (("f_unsafe", "unsafe_caption"), ("f_safe", "safe_caption")) if captioned else ():
                said = rows[text].to_pylist()
                features, cut = self._clip.texts([said[i] for i in places])
                self._put(entries, places, column, features)
                self._put(entries, places, f"{text}_cosine", cosine_similarity(images, features))
                for i, was_cut in zip(places, cut, strict=True):
                    if was_cut:
                        notes = [entries[i].get("embed_note"), f"{text.replace('_', '-')}-cut"]
                        entries[i]["embed_note"] = ",".join(n for n in notes if n)
        return pa.Table.from_pylist(entries, schema=SCHEMA)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        return pa.Table.from_pylist([k | {"embed_failure": code} for k in keys], schema=SCHEMA)

    @staticmethod
    def _put(entries: list[dict[str, Any]], places: list[int], column: str, features: Any) -> None:
        for i, feature in zip(places, features.tolist(), strict=True):
            entries[i][column] = feature
