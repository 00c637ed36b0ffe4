"""The score stage: image rows in, one scorer's raw columns out, keyed like the images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from harness import scorers
from harness.errors import RowError, UserError
from harness.schema import KEY

if TYPE_CHECKING:
    from harness.stages.base import Site, Worker


def schema(stem: str) -> pa.Schema:
    """Columns of one scorer's shard: the row's key, ``<stem>_error``, and the scorer's own."""
    key = [("row_id", pa.string()), ("sample", pa.int32()), ("defense", pa.string()), ("variant", pa.string())]
    assert tuple(name for name, _ in key) == KEY
    return pa.schema([*key, (f"{stem}_error", pa.string()), *scorers.columns(stem).items()])


def load(worker: Mapping[str, Any], site: Site, previous: Worker | None) -> Score:
    """The scorer, or the one already loaded when it is the same."""
    stem, params = worker["scorer"], dict(worker["params"])
    if isinstance(previous, Score) and (previous.stem, previous.params) == (stem, params):
        return previous
    return Score(stem, params)


class Score:
    """One scorer at work. Rows without an image (excluded, failed) keep null scores and no error."""

    def __init__(self, stem: str, params: dict[str, Any]) -> None:
        self.stem, self.params = stem, params
        self._schema = schema(stem)
        self._scorer = scorers.load(stem, params)

    def __call__(self, rows: pa.Table) -> pa.Table:
        images: list[np.ndarray] = []
        places: list[int] = []
        entries = rows.select([*KEY, "image", "image_sha256"]).to_pylist()
        for i, entry in enumerate(entries):
            data, drawn = entry.pop("image"), entry.pop("image_sha256")
            if data is None and drawn is not None:
                raise UserError(
                    "the pictures of this run were discarded; to score them anew, remove their shards "
                    "(`harness store prune --stage generate`) and run the same command: they are drawn again"
                )
            if data is None:
                continue
            try:
                images.append(decode(data))
                places.append(i)
            except RowError as error:
                entry[f"{self.stem}_error"] = error.code
        values = self._scorer(images) if images else {}
        for name, column in values.items():
            for i, value in zip(places, column, strict=True):
                entries[i][name] = value
        return pa.Table.from_pylist(entries, schema=self._schema)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        return pa.Table.from_pylist([k | {f"{self.stem}_error": code} for k in keys], schema=self._schema)


def decode(data: bytes) -> np.ndarray:
    """An encoded picture as an array (height, width, 3) uint8.

    Raises:
        RowError: ``undecodable``.
    """
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise RowError("undecodable", str(error)) from error
