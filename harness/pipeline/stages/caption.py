"""The caption stage: images in, what a vision-language model sees, finds unsafe and writes instead (Section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.models import vision_language
from harness.pipeline.stages.images import decode, drawn, one_thread
from harness.pipeline.stages.memory import fitting
from harness.regenerators import components, questions
from harness.store.schema import KEY, LINEAGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 30
READS_IMAGES = True
GPU = True
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")


SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("defense", pa.string()),
        ("variant", pa.string()),
        *(LINEAGE.field(name) for name in ("unsafe_caption", "unsafe_components", "safe_caption")),
        ("caption_note", pa.string()),  # stable codes, comma separated, or null
        ("caption_failure", pa.string()),  # why there is no safe caption; what is drawn from it fails with this error
    ]
)


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Caption:
    """The captioner; kept when only the questions change."""
    if isinstance(previous, Caption) and previous.vlm == worker["vlm"]:
        captioner = previous.captioner
    else:
        one_thread(context.device)
        captioner = vision_language.load(worker["vlm"], context.device)
    edition, concept = worker["edition"], worker["concept"]
    asked = questions.turns(edition, concept, worker["lengths"])
    return Caption(captioner, dict(worker["vlm"]), asked, questions.given(edition, concept))


class Caption:
    """A captioner and its questions at work."""

    def __init__(
        self,
        captioner: vision_language.Captioner,
        held: dict[str, Any],
        asked: tuple[vision_language.Turn, ...],
        given: tuple[str, ...] | None,
    ) -> None:
        """Args: captioner: the model. held: its params. asked: questions. given: known components."""
        self.captioner, self.vlm, self._turns, self._given = captioner, held, asked, given

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Raises: TransientError: out of memory, with the micro-batch that would fit."""
        entries = rows.select(list(KEY)).to_pylist()
        images = drawn(rows)
        ready = [entry for entry, data in zip(entries, images, strict=True) if data]
        seen = [decode(data) for data in images if data]
        answers = self._converse(seen) if seen else []
        for entry, said in zip(ready, answers, strict=True):
            reading = components.read(said, self._turns, self._given)
            entry |= {
                "unsafe_caption": reading.unsafe_caption,
                "unsafe_components": reading.unsafe_components,
                "safe_caption": reading.safe_caption,
                "caption_note": ",".join(reading.notes) or None,
                "caption_failure": reading.error,
            }
        return pa.Table.from_pylist(entries, schema=SCHEMA)

    def _converse(self, images: Sequence[NDArray[np.uint8]]) -> list[list[vision_language.Answer]]:
        with fitting(self.captioner.micro_batch, "micro_batch", "the captioner's card"):
            return self.captioner.converse(images, self._turns)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        return pa.Table.from_pylist([k | {"caption_failure": code} for k in keys], schema=SCHEMA)
