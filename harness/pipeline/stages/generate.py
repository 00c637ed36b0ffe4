"""The generate stage: prompt rows in, image rows out (schema PROMPT -> IMAGE)."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.data.guard import guard, normalise
from harness.defenses.stacked import stacked
from harness.errors import RowError
from harness.models import text_to_image
from harness.pipeline.stages import build
from harness.pipeline.stages.images import one_thread, put
from harness.pipeline.stages.memory import fitting
from harness.store.schema import IMAGE, need

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from harness.defenses import Defense
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 20
GPU = True
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "numpy")


class Reading(NamedTuple):
    """What the text encoders read of a text."""

    digest: str  # of the tokens that each of them reads: texts that share it draw one image
    cut: bool  # the end of the text is lost: it is longer than the window of each of them


_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")  # as diffusers calls them, one for each text encoder


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Generate:
    """The backbone under one defense; keeps the loaded backbone when only the defense changes.

    Raises:
        UserError: weights are missing or do not fit.
    """
    card = BackboneCard.model_validate(worker["backbone"])
    one_thread(context.device)
    if isinstance(previous, Generate) and previous.card == card:
        pipe = previous.release()
    else:
        pipe = text_to_image.load(card, context.device)
    layers = [_layer(one, card, pipe, context) for one in worker["layers"]]
    return Generate(card, pipe, stacked(layers), worker["concept"])


def _layer(
    layer: Mapping[str, Any], card: BackboneCard, pipe: StableDiffusionPipeline, context: WorkerContext
) -> Defense:
    """A defense, with its artefact from the store. One that takes seconds to build is built here; others are by now."""
    artefact = None
    if layer["artefact"] is not None:
        path = build.ensure(layer, context, lambda: (card, pipe))
        artefact = defenses.read_built(layer["mechanism"], path, pipe)
    return defenses.load(layer["mechanism"], pipe, layer["params"], artefact)


class Generate:
    """A defended backbone at work."""

    def __init__(self, card: BackboneCard, pipe: StableDiffusionPipeline, defense: Defense, concept: str) -> None:
        self.card, self._pipe, self._defense, self._concept = card, pipe, defense, concept
        defense.attach(pipe)

    def release(self) -> StableDiffusionPipeline:
        """Detach the defense and return the undefended backbone; this object must not be used afterwards."""
        self._defense.detach(self._pipe)
        return self._pipe

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Draw every row that is not excluded.

        Raises:
            TransientError: out of memory, with the micro-batch that would fit.
        """
        entries: list[dict[str, Any]] = rows.to_pylist()
        for entry in entries:
            entry |= dict.fromkeys(("image", "image_sha256", "degenerate", "error", "defense_note"))
        chosen = [e for e in entries if e["excluded"] is None]
        for entry in chosen:
            reading = self.reading(entry["prompt"])
            notes = {"prompt-blank": not normalise(entry["prompt"]).strip(), "prompt-cut": reading.cut}
            entry["prompt_read"] = reading.digest
            entry["prompt_note"] = ",".join(code for code, holds in notes.items() if holds) or None
        self.paint([(entry, entry["prompt"]) for entry in chosen])
        return need(pa.Table.from_pylist(entries, schema=IMAGE), IMAGE, "generate")

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        empty = {"image": None, "image_sha256": None, "degenerate": None, "error": code}
        return pa.Table.from_pylist([r | empty for r in rows.to_pylist()], schema=IMAGE)

    def paint(self, jobs: Sequence[tuple[dict[str, Any], str]]) -> None:
        """Draw a text for each row and fill its image columns; rows are grouped by guidance and size.

        Args:
            jobs: row (its seed, guidance, size and concept count) and what to draw. A text that the guard refuses,
                for the row's or the defense's concept, excludes its row.

        Raises:
            TransientError: out of memory, with the micro-batch that would fit.
        """
        groups: dict[text_to_image.Canvas, list[tuple[dict[str, Any], str]]] = {}
        for entry, text in jobs:
            if admitted(entry, [text], self._concept):
                canvas = text_to_image.Canvas(entry["guidance"], entry["width"], entry["height"])
                groups.setdefault(canvas, []).append((entry, text))
        for canvas, members in groups.items():
            self._draw(members, canvas)

    def reading(self, text: str) -> Reading:
        """What the backbone's text encoders read of ``text``, each within its window."""
        taken = inspect.signature(type(self._pipe).__call__).parameters
        limit = self.card.max_sequence_length  # of T5; CLIP's window is smaller
        if limit is None:
            limit = taken["max_sequence_length"].default if "max_sequence_length" in taken else sys.maxsize
        read, over = [], []
        for tokenizer in (t for name in _TOKENIZERS if (t := getattr(self._pipe, name, None)) is not None):
            window = min(tokenizer.model_max_length, limit)
            whole = tokenizer(text, truncation=False, verbose=False).input_ids
            over.append(len(whole) > window)
            cut = tokenizer(text, truncation=True, max_length=window, verbose=False).input_ids if over[-1] else whole
            read.append(list(cut))
        digest = hashlib.sha256(repr(read).encode()).hexdigest()[:16]
        return Reading(digest, bool(over) and all(over))

    def _draw(self, jobs: Sequence[tuple[dict[str, Any], str]], canvas: text_to_image.Canvas) -> None:
        requests = [text_to_image.Request(text, e["seed"], e["concept"]) for e, text in jobs]
        size = self.card.micro_batch
        with fitting(size, "micro_batch", self.card.path.name):
            images = text_to_image.sample(
                self._pipe, self._defense, requests, canvas, self.card.steps, size, text_to_image.options(self.card)
            )
        note = self._defense.note(canvas.guidance)
        for (entry, _), image in zip(jobs, images, strict=True):
            put(entry, image)
            entry["defense_note"] = note


def admitted(entry: dict[str, Any], texts: Iterable[str], concept: str) -> bool:
    """Whether the guard passes every text for the row's concept and for ``concept``; if not, the row says why."""
    try:
        for text in texts:
            guard(text, entry["concept"])
            guard(text, concept)
    except RowError as error:
        entry["excluded"] = error.code
        return False
    return True
