"""The generate stage: prompt rows in, image rows out (schema PROMPT -> IMAGE)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from harness import backbones, defenses
from harness.cards import BackboneCard
from harness.errors import RowError, TransientError
from harness.guard import guard
from harness.schema import IMAGE, need
from harness.scorers.degenerate import degenerate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import StableDiffusionPipeline

    from harness.defenses import Defense
    from harness.stages.base import Site, Worker


def load(worker: Mapping[str, Any], site: Site, previous: Worker | None) -> Generate:
    """The backbone under one defense; keeps the loaded backbone when only the defense changes.

    Raises:
        UserError: weights are missing or do not fit.
    """
    card = BackboneCard.model_validate(worker["backbone"])
    if site.device == "cpu":
        torch.set_num_threads(1)  # a picture must not depend on how many cores are at hand
    if isinstance(previous, Generate) and previous.card == card:
        pipe = previous.release()
    else:
        pipe = backbones.load(card, site.device)
    method = worker["method"]
    artefact = _artefact(pipe, worker, site) if worker["artefact"] else None
    defense = defenses.load(method["mechanism"], pipe, method["params"], artefact)
    return Generate(card, pipe, defense, method["params"]["concept"])


def _artefact(pipe: StableDiffusionPipeline, worker: Mapping[str, Any], site: Site) -> dict[str, torch.Tensor]:
    """The built defense from the store; built here, by one process at a time, when it is not there yet."""
    found, method = worker["artefact"], worker["method"]
    folder = site.store.folder("artefact", found["fingerprint"])
    path = folder / "unet.safetensors"
    if not path.exists():
        with _alone(folder):
            if not path.exists():
                tensors = defenses.build(method["mechanism"], pipe, method["params"])
                defenses.write_artefact(path, tensors, found["key"])
    return defenses.read_artefact(path, pipe.unet)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        flock(file, LOCK_EX)
        yield


class Generate:
    """A defended backbone at work."""

    def __init__(self, card: BackboneCard, pipe: StableDiffusionPipeline, defense: Defense, concept: str) -> None:
        self.card, self._pipe, self._defense, self._concept = card, pipe, defense, concept
        defense.attach(pipe)

    def release(self) -> StableDiffusionPipeline:
        """The backbone as it was before the defense."""
        self._defense.detach(self._pipe)
        return self._pipe

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Draw every row that is not excluded, grouped by guidance and size.

        Raises:
            TransientError: out of memory, with the micro-batch that would fit.
        """
        entries: list[dict[str, Any]] = rows.to_pylist()
        groups: dict[backbones.Canvas, list[int]] = {}
        for i, entry in enumerate(entries):
            entry |= {"image": None, "image_sha256": None, "degenerate": None, "error": None}
            if entry["excluded"] is None and self._admitted(entry):
                canvas = backbones.Canvas(entry["guidance"], entry["width"], entry["height"])
                groups.setdefault(canvas, []).append(i)
        for canvas, members in groups.items():
            self._draw([entries[i] for i in members], canvas)
        return need(pa.Table.from_pylist(entries, schema=IMAGE), IMAGE, "generate")

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        empty = {"image": None, "image_sha256": None, "degenerate": None, "error": code}
        return pa.Table.from_pylist([r | empty for r in rows.to_pylist()], schema=IMAGE)

    def _admitted(self, entry: dict[str, Any]) -> bool:
        """False, with the reason in the row, if the guard refuses it for its own or the defense's concept."""
        try:
            guard(entry["prompt"], entry["concept"])
            guard(entry["prompt"], self._concept)
        except RowError as error:
            entry["excluded"] = error.code
            return False
        return True

    def _draw(self, entries: list[dict[str, Any]], canvas: backbones.Canvas) -> None:
        requests = [backbones.Request(e["prompt"], e["seed"], e["concept"]) for e in entries]
        size = self.card.micro_batch
        try:
            pictures = backbones.sample(self._pipe, self._defense, requests, canvas, self.card.steps, size)
        except torch.OutOfMemoryError as error:
            raise TransientError(
                f"out of memory at micro_batch {size}; set micro_batch: {max(1, size // 2)} in {self.card.name}.yaml"
            ) from error
        for entry, picture in zip(entries, pictures, strict=True):
            entry["image"] = encode(picture)
            entry["image_sha256"] = hashlib.sha256(picture.tobytes()).hexdigest()
            entry["degenerate"] = degenerate(picture)


def encode(picture: np.ndarray) -> bytes:
    """Lossless PNG of an array (height, width, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
