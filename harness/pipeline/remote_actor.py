"""Stages as an actor of Ray holds them: in a process of its own, perhaps on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from harness.models.library_logs import keep_outputs_private, silence
from harness.pipeline import worker_code
from harness.pipeline.spec import StageSpec
from harness.pipeline.stages.base import StageActor, WorkerContext


class RemoteActor(StageActor):
    """A ``StageActor`` that writes nothing of what it sees into Ray's files, and works only with the driver's code."""

    def __init__(
        self,
        stages: Sequence[Mapping[int, tuple[StageSpec, ...]]],
        context: WorkerContext,
        gpu_share: float,
        code: Mapping[str, Any],
    ) -> None:
        """Args: code: the driver's (``worker_code.identity``); a node may have joined after the others were asked."""
        silence()
        keep_outputs_private()
        own = worker_code.identity(list(code["sources"]), [name for name in code["versions"] if name != "python"])
        self._differs = worker_code.difference(code, own)
        super().__init__(stages, context, gpu_share)

    def __call__(self, ticket: pa.Table) -> pa.Table:
        """Pass the ticket through the stages."""
        if not self._differs:
            return super().__call__(ticket)
        (row,) = ticket.to_pylist()
        if row["status"] == "ok":
            row |= {"status": "failed", "detail": f"a worker runs other code than the driver: {self._differs}"}
        return pa.Table.from_pylist([row], schema=ticket.schema)
