"""The score stage: image rows in, one scorer's raw columns out, keyed like the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness import scorers
from harness.cards.scorer_ref import ScorerRef
from harness.errors import RowError
from harness.pipeline.stages.images import decode, drawn
from harness.store.schema import KEY

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 80
READS_IMAGES = True


def schema(stem: str, reference: str | None = None) -> pa.Schema:
    """Columns of one scorer's shard: the row's key, ``<stem>_error``, and the scorer's own.

    Args:
        stem: the scorer.
        reference: what a pair scorer compares with; its columns are named ``<column>@<reference>``.
    """
    key = [("row_id", pa.string()), ("sample", pa.int32()), ("defense", pa.string()), ("variant", pa.string())]
    assert tuple(name for name, _ in key) == KEY
    own = {f"{stem}_error": pa.string(), **scorers.columns(stem)}
    return pa.schema([*key, *((str(ScorerRef(name, reference)), kind) for name, kind in own.items())])


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Score:
    """The scorer, or the one already loaded when it is the same."""
    asked = (worker["scorer"], dict(worker["params"]), worker["reference"])
    if isinstance(previous, Score) and (previous.stem, previous.params, previous.reference) == asked:
        return previous
    return Score(*asked)


class Score:
    """One scorer at work. Rows without an image (excluded, failed) keep null scores and no error."""

    def __init__(self, stem: str, params: dict[str, Any], reference: str | None = None) -> None:
        self.stem, self.params, self.reference = stem, params, reference
        self._schema = schema(stem, reference)
        self._scorer = scorers.load(stem, params)

    def __call__(self, rows: pa.Table) -> pa.Table:
        entries = rows.select(list(KEY)).to_pylist()
        given, places = [], []
        beside = self._beside(rows)
        for i, data in enumerate(drawn(rows)):
            if data is None:
                continue
            try:
                given.append((decode(data), None if beside is None else beside(i)))
                places.append(i)
            except RowError as error:
                entries[i][str(ScorerRef(f"{self.stem}_error", self.reference))] = error.code
        if given:
            images, others = zip(*given, strict=True)
            values = self._scorer(images) if beside is None else self._scorer(images, others)
            for name, column in values.items():
                for i, value in zip(places, column, strict=True):
                    entries[i][str(ScorerRef(name, self.reference))] = value
        return pa.Table.from_pylist(entries, schema=self._schema)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        error = str(ScorerRef(f"{self.stem}_error", self.reference))
        return pa.Table.from_pylist([k | {error: code} for k in keys], schema=self._schema)

    def _beside(self, rows: pa.Table) -> Callable[[int], Any] | None:
        """What stands beside the image of a row: its reference, its prompt, or nothing at all."""
        if self.reference is not None:
            renamed = {"image": rows["reference"], "image_sha256": rows["reference_sha256"]}
            references = drawn(pa.table(renamed))
            return lambda i: decode(data) if (data := references[i]) is not None else None
        if scorers.text(self.stem):
            prompts = rows["prompt"].to_pylist()
            return lambda i: prompts[i]
        return None
