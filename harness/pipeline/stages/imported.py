"""The stage of imported images: files of images that were not drawn here (schema PROMPT + SOURCE -> IMAGE)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.data import image_folder
from harness.errors import RowError
from harness.pipeline.stages.images import decode, has_frames, put
from harness.store.schema import IMAGE

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 10
LIBRARIES = ("pillow", "numpy")


FIRST_FRAME = "first-frame-of-several"  # noted of an animation, and of other images of several frames or pages


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Given:
    """Nothing to load."""
    return Given()


class Given:
    """Reads image files, checks and decodes them."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([_take(row) for row in rows.to_pylist()], schema=IMAGE)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        return pa.Table.from_pylist([{**_blank(row), "error": code} for row in rows.to_pylist()], schema=IMAGE)


def _take(row: dict[str, Any]) -> dict[str, Any]:
    entry = _blank(row)
    try:
        data = image_folder.load(row["source"])
        if hashlib.sha256(data).hexdigest() != row["source_sha256"]:
            raise RowError("changed", "the file is not the one the run began with")
        put(entry, decode(data))
        entry["prompt_note"] = FIRST_FRAME if has_frames(data) else None
    except OSError:
        entry["error"] = "unreadable"
    except RowError as error:
        entry["error"] = error.code
    return entry


def _blank(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in IMAGE.names}
