"""The build stage: an artefact that a defense is loaded with, made once by one process and kept in the store.

A build has a patience of its own. It may take days, so no clock runs over the whole of it; what ends it is silence,
when no step is done for longer than ``WorkerContext.silence_s``. Waiting for another process that builds the same
artefact is no hang, however long it takes. A build that is killed or stopped goes on from its last checkpoint, with
equal bytes in the end.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock, Timeout

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.defenses.base import BuildContext, BuildStep
from harness.errors import is_transient
from harness.pipeline.spec import StageSpec
from harness.pipeline.stages import watchdog
from harness.pipeline.stages.attempts import DeadlyError, Marks, StoppedError, log
from harness.pipeline.stages.images import one_thread
from harness.pipeline.stages.training_images import drawer
from harness.store.artefacts import ArtefactFolder, Clock

if TYPE_CHECKING:
    from harness.pipeline.stages.base import WorkerContext

PLACE = 0
GPU = True

_LOOK_S = 0.5  # between two looks at another builder, and between two notes of progress


class BuildStage:
    """The builds of a run, in the place of a stage over shards: a ticket is one artefact."""

    def __init__(self, specs: Mapping[int, tuple[StageSpec, ...]], context: WorkerContext) -> None:
        """Args: specs: one build for each number that a ticket may have as its ``condition``."""
        self._specs, self._context = specs, context
        self._card: BackboneCard | None = None
        self._pipe: Any = None

    def __call__(self, ticket: pa.Table) -> pa.Table:
        """Build the ticket's artefact unless it is there, or say in the ticket why not."""
        row: dict[str, Any] = ticket.to_pylist()[0]
        (spec,) = self._specs[row["condition"]]
        try:
            ensure(spec.worker["layer"], self._context, lambda: self._backbone(spec))
        except StoppedError as error:
            row |= {"status": "stopped", "detail": str(error)}
        except Exception as error:  # the boundary: one defense's bug must not take the others along
            status = "incomplete" if is_transient(error) else "failed"
            named = str(error) if is_transient(error) else f"{type(error).__name__}: {error}"
            row |= {"status": status, "detail": f"build of {spec.build.defense if spec.build else ''}: {named}"}
            log(
                self._context.run,
                {"stage": "build", "fingerprint": spec.fingerprint, "traceback": traceback.format_exc()},
            )
        return pa.Table.from_pylist([row], schema=ticket.schema)

    def _backbone(self, spec: StageSpec) -> tuple[BackboneCard, Any]:
        """The undefended backbone; kept for the next build, which finds it as it was."""
        from harness.models import text_to_image

        card = BackboneCard.model_validate(spec.worker["backbone"])
        if self._card != card:
            one_thread(self._context.device)
            self._pipe = text_to_image.load(card, self._context.device)
            self._card = card
        return card, self._pipe


def ensure(layer: Mapping[str, Any], context: WorkerContext, backbone: Any) -> Path:
    """The file of a layer's artefact, built here unless it is there; where another process builds it, after that.

    Args:
        layer: as ``defense_layers.Layer.worker`` gives it.
        context: store, device and patience.
        backbone: called where something has to be built: the card, and the undefended pipeline, which stays as it is.

    Raises:
        UserError: a bad parameter, a refused text, weights that do not fit.
        TransientError: no memory now.
        StoppedError: the run was stopped.
        DeadlyError: building it has killed workers again and again.
    """
    folder = ArtefactFolder.of(context.store, layer["artefact"]["fingerprint"])
    if not folder.is_built:
        with _alone(folder, context):
            if not folder.is_built:
                _build(layer, folder, context, backbone)
    return folder.tensors


@contextmanager
def _alone(folder: ArtefactFolder, context: WorkerContext) -> Iterator[None]:
    """Hold the artefact's lock; who waits for it looks whether the run is stopped, and no watchdog runs meanwhile."""
    lock: FileLock = folder.lock()
    with watchdog.patient():
        while True:
            try:
                lock.acquire(timeout=_LOOK_S, poll_interval=_LOOK_S / 5)
                break
            except Timeout:
                _require_running(context)
            except (NotImplementedError, OSError):  # a file system without locks: two may work, and write the same
                break
    try:
        yield
    finally:
        lock.release()


def _build(layer: Mapping[str, Any], folder: ArtefactFolder, context: WorkerContext, backbone: Any) -> None:
    """Build and write the artefact."""
    name = f"build-{layer['artefact']['fingerprint']}"
    marks = Marks(context.run / "attempts" / f"{name}.jsonl")
    if marks.count(None) >= context.tries:
        raise DeadlyError(f"building it kills the worker (is there room for it? see {context.run / 'hangs'})")
    before = folder.progress()
    folder.note("loading", 0, 0, None, before.seconds if before is not None else 0.0)
    trace = context.run / "hangs" / f"{name}-{os.getpid()}.txt"
    with marks.held(None), watchdog.watched(context.silence_s, trace):
        card, pipe = backbone()
        clock = Clock(before)
        tell = Teller(folder, context, clock)
        params = layer["params"]
        how = BuildContext(folder=folder.checkpoints, report=tell, draw=drawer(pipe, card, params["concept"], tell))
        tensors = defenses.build(layer["mechanism"], pipe, params, how)
        provenance = {**layer["artefact"]["key"], "kind": layer["artefact"]["kind"]}
        defenses.write_artefact(folder.tensors, tensors, provenance)
    marks.clear()
    folder.finish(clock.seconds, context.device)


class Teller:
    """Progress callback of a build: notes the step, restarts the watchdog's clock, raises once the run is stopped."""

    def __init__(self, folder: ArtefactFolder, context: WorkerContext, clock: Clock) -> None:
        self._folder, self._context, self._clock = folder, context, clock
        self._last = float("-inf")

    def __call__(self, step: BuildStep) -> None:
        """Raises: StoppedError: the run was stopped."""
        now = time.monotonic()
        if now - self._last < _LOOK_S and step.step < step.steps:
            return
        self._last = now
        watchdog.alive()
        self._folder.note(step.phase, step.step, step.steps, step.loss, self._clock.seconds)
        _require_running(self._context)


def _require_running(context: WorkerContext) -> None:
    if context.stop.exists():
        raise StoppedError
