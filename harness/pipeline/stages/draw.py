"""The draw stage: each image's new prompt, drawn with the image's own seed (Section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.pipeline.stages import generate
from harness.store.schema import INHERITED, REGENERATION, need

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 60
GPU = True

_FAILURES = ("caption_failure", "optimise_failure")
_NOTES = ("caption_note", "optimise_note")


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Draw:
    """The backbone that draws; kept as ``generate`` keeps it."""
    painter = generate.load(worker["drawing"], context, previous.painter if isinstance(previous, Draw) else previous)
    return Draw(painter, worker)


class Draw:
    """A backbone that draws the prompts that a regenerator wrote."""

    def __init__(self, painter: generate.Generate, worker: Mapping[str, Any]) -> None:
        self.painter, self._worker = painter, worker
        self._concept = worker["drawing"]["concept"]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Raises: TransientError: out of memory, with the micro-batch that would fit."""
        entries = [self._begin(row) for row in rows.to_pylist()]
        text = self._worker["text"]
        jobs = [
            (entry, entry[text])
            for entry in entries
            if entry["excluded"] is None and entry["error"] is None and self._admitted(entry)
        ]
        own = {id(entry): {k: entry[k] for k in ("seed", "guidance", "width", "height")} for entry, _ in jobs}
        for entry, _ in jobs:
            entry |= self._drawn_with()
        for entry, drawn in jobs:
            if self.painter.reading(drawn).cut:
                code = f"{text.replace('_', '-')}-cut"  # as the embed stage says it of CLIP's window
                entry["regen_note"] = f"{entry['regen_note']},{code}" if entry["regen_note"] else code
        self.painter.paint(jobs)
        for entry, _ in jobs:
            entry |= own[id(entry)]  # the row's own, by which it is known
        return need(pa.Table.from_pylist(entries, schema=REGENERATION), REGENERATION, "draw")

    def _drawn_with(self) -> dict[str, Any]:
        """What is drawn with instead of the row's own seed, guidance and size."""
        card = self.painter.card
        chosen: dict[str, Any] = {}
        if self._worker["own_canvas"]:
            chosen |= {"guidance": card.guidance, "width": card.width, "height": card.height}
        if self._worker["guidance"] == "own":
            chosen["guidance"] = card.guidance
        if self._worker["seed"] != "row":
            chosen["seed"] = self._worker["seed"]
        return chosen

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        entries = [self._begin(row) for row in rows.to_pylist()]
        for entry in entries:
            entry["error"] = entry["error"] or code
        return pa.Table.from_pylist(entries, schema=REGENERATION)

    def _begin(self, row: dict[str, Any]) -> dict[str, Any]:
        """The regeneration's row before it is drawn: whose it is, how it came about, and what failed before."""
        entry = {name: row.get(name) for name in REGENERATION.names}
        notes = ",".join(row[n] for n in _NOTES if row.get(n)) or None
        entry |= {
            "variant": self._worker["variant"], "regen_backbone": self.painter.card.name, "vlm": self._worker["vlm"],
            "regen_note": notes, "image": None, "image_sha256": None, "degenerate": None,
            "error": f"{INHERITED}{row['error']}" if row["error"] else None,
        }  # fmt: skip
        if entry["excluded"] is None and entry["error"] is None:
            entry["error"] = next((row[f] for f in _FAILURES if row.get(f)), None)
        return entry

    def _admitted(self, entry: dict[str, Any]) -> bool:
        """The guard reads captions and components too: an image of what must not be drawn is not drawn again."""
        texts = [entry[name] for name in ("unsafe_caption", "safe_caption") if entry[name]]
        texts += entry["unsafe_components"] or ()
        return generate.admitted(entry, texts, self._concept)
