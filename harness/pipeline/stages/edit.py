"""The edit stage: base images in, images edited by instruction out (schema IMAGE -> REGENERATION)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from harness.cards.regenerator import Edit
from harness.data.guard import guard
from harness.errors import RowError
from harness.models import image_editing
from harness.models.image_editing import Job
from harness.pipeline.stages.images import decode, drawn, put
from harness.pipeline.stages.memory import fitting
from harness.store.schema import INHERITED, LINEAGE, REGENERATION, need

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 70
READS_IMAGES = True
GPU = True

_NOTHING_DRAWN = dict.fromkeys(("image", "image_sha256", "degenerate"))


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Editor:
    """The editor, or the one already loaded when it is the same.

    Args:
        worker: ``variant`` and ``concept`` of the rows, the card's ``name``, ``edit`` section and ``root``.

    Raises:
        UserError: weights are missing or do not fit.
    """
    settings, root = Edit.model_validate(worker["edit"]), Path(worker["root"])
    if context.device == "cpu":
        torch.set_num_threads(1)  # an image must not depend on how many cores are at hand
    if isinstance(previous, Editor) and (previous.settings, previous.root) == (settings, root):
        pipe = previous.pipe
    else:
        pipe = image_editing.load(settings, root, context.device, worker["name"])
    return Editor(settings, root, pipe, worker)


class Editor:
    """An editor at work for one variant. What descends from an excluded or failed row is excluded or failed."""

    def __init__(self, settings: Edit, root: Path, pipe: DiffusionPipeline, worker: Mapping[str, Any]) -> None:
        self.settings, self.root, self.pipe = settings, root, pipe
        self._name, self._variant, self._concept = worker["name"], worker["variant"], worker["concept"]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Edit every image that is there.

        Raises:
            TransientError: out of memory, with the micro-batch that would fit.
            UserError: the images were discarded.
        """
        images = drawn(rows)
        entries = self._entries(rows)
        jobs: dict[int, Job] = {}
        for i, (entry, data) in enumerate(zip(entries, images, strict=True)):
            if data is None or not self._admitted(entry):
                continue
            try:
                jobs[i] = Job(decode(data), entry["seed"], self._concept)
            except RowError as error:
                entry["error"] = error.code
        for i, image in zip(jobs, self._edit(list(jobs.values())), strict=True):
            put(entries[i], image)
        return need(pa.Table.from_pylist(entries, schema=REGENERATION), REGENERATION, "edit")

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        entries = self._entries(rows)
        for entry in entries:
            entry["error"] = entry["error"] or code
        return pa.Table.from_pylist(entries, schema=REGENERATION)

    def _entries(self, rows: pa.Table) -> list[dict[str, Any]]:
        """The rows under this variant's name, with nothing drawn yet; what failed before has failed here too."""
        own = _NOTHING_DRAWN | dict.fromkeys(LINEAGE.names) | {"regen_backbone": self._name, "variant": self._variant}
        kept = rows.drop_columns(list(_NOTHING_DRAWN)).to_pylist()
        return [r | own | {"error": f"{INHERITED}{r['error']}" if r["error"] else None} for r in kept]

    def _admitted(self, entry: dict[str, Any]) -> bool:
        """False, with the reason in the row, if the guard refuses what its image was or would be drawn from."""
        if entry["excluded"] is not None or entry["error"] is not None:
            return False
        try:
            for text in (entry["prompt"] or "", image_editing.prompt(self.settings, self._concept)):
                guard(text, entry["concept"])
                guard(text, self._concept)
        except RowError as error:
            entry["excluded"] = error.code
            return False
        return True

    def _edit(self, jobs: list[Job]) -> list[image_editing.ImageArray]:
        with fitting(self.settings.micro_batch, "edit.micro_batch", f"{self._name}.yaml"):
            return image_editing.edit(self.pipe, self.settings, jobs)
