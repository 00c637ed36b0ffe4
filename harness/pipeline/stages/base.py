"""One stage at work: take a ticket, compute its shard unless it is published, pass the ticket on.

What flows is a *ticket* (a one-row table); shards lie in the store. Retry, quarantine, time-outs and
stopping live here and on disk, so that they hold under any executor and any death:

* A mark is written before computing (and before loading a model) and removed after. A shard whose
  marks show that it killed its worker ``tries`` times is computed row by row, each row marked; a row
  that killed it as often on its own is quarantined by name, unless nothing but deaths is seen: then it
  is not the rows. Marks live in the run's folder, anew at every start.
* A row that raises is final and counted; what may pass (memory, a full disk) leaves the shard incomplete.
* ``faulthandler`` ends a worker that hangs; from there it is a death like any other.
"""

from __future__ import annotations

import importlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.scorer_ref import ScorerRef
from harness.errors import is_transient
from harness.pipeline.spec import Source, StageSpec
from harness.pipeline.stages import watchdog
from harness.pipeline.stages.activity import Activity
from harness.pipeline.stages.attempts import HOPELESS, Bisection, DeadlyError, Marks, StoppedError, log, row_name
from harness.store.schema import INHERITED, KEY
from harness.store.shards import Store, columns, is_complete, publish, read

STOP = "STOP"  # file in a run's folder: what is being computed finishes its stage, nothing else begins
_LOADING = "(loading)"  # in a mark, in a row's place

TICKET = pa.schema(
    [
        ("condition", pa.int32()),
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("rows", pa.binary()),  # Arrow IPC of the shard's prompt rows
        (
            "status",
            pa.string(),
        ),  # "ok", or why the rest of the condition is not done: "stopped", "incomplete", "failed"
        ("detail", pa.string()),  # for people: what went wrong
        ("failed", pa.list_(pa.string())),  # rows of this shard that ended in an error, computed just now
    ]
)


class Worker(Protocol):
    """A loaded model: rows in, rows out, in the same order; row errors are values, not exceptions."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Compute a shard (or a part of one).

        Raises:
            TransientError: nothing is wrong with the rows; try again later.
        """
        ...

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        """The output for ``rows`` when each of them ended in the error ``code``."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A worker that may compute, with the rows that it is given, what others will be asked for over the same rows."""

    foreign_seconds: float  # since ``look_ahead``: spent for others; negative where others had spent them for it

    def look_ahead(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Say what will be asked for over the rows of the next call, as ``StageSpec.worker`` has it."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """Where the stages of a run work: store, run folder, device, and time limits."""

    store: Store
    run: Path  # folder of the run: marks, stop file, sidecars
    device: str = "cpu"
    tries: int = 2  # deaths of a whole shard before it is split into rows, and of a row alone before it is given up
    limit_s: float = 3600.0  # a call that takes longer is a hang
    silence_s: float = 4 * 3600.0  # a build of which no step is done for longer is a hang

    @property
    def stop(self) -> Path:
        return self.run / STOP


class StageActor:
    """Stages that share a process, as Ray Data or the inline executor calls them: a ticket meets them in order."""

    def __init__(
        self, stages: Sequence[Mapping[int, tuple[StageSpec, ...]]], context: WorkerContext, gpu_share: float = 0.0
    ) -> None:
        """Args: stages: each stage's specs by condition index. gpu_share: the part of a GPU's memory to keep within."""
        self._stages = [_stage(specs, context) for specs in stages]
        if gpu_share and context.device != "cpu":
            import torch

            torch.cuda.set_per_process_memory_fraction(gpu_share)  # Ray's shares are bookkeeping only

    def __call__(self, ticket: pa.Table) -> pa.Table:
        for stage in self._stages:
            ticket = stage(ticket)
        return ticket


def _stage(specs: Mapping[int, tuple[StageSpec, ...]], context: WorkerContext) -> Callable[[pa.Table], pa.Table]:
    """What takes the tickets of one stage; builds have no shards."""
    if any(spec.kind == "build" for several in specs.values() for spec in several):
        made: Callable[[pa.Table], pa.Table] = importlib.import_module("harness.pipeline.stages.build").BuildStage(
            specs, context
        )
        return made
    return Stage(specs, context)


class Stage:
    """A stage of every condition of a run."""

    def __init__(self, specs: Mapping[int, tuple[StageSpec, ...]], context: WorkerContext) -> None:
        """Args: specs: by condition index, one per variant; a condition without this stage passes through."""
        self._specs, self._context = specs, context
        self._activity = Activity(context.run)
        self._worker: Worker | None = None
        self._loaded: str | None = None

    def __call__(self, ticket: pa.Table) -> pa.Table:
        """Publish the ticket's shard at this stage, or say in the ticket why not."""
        row: dict[str, Any] = ticket.to_pylist()[0]
        for spec in self._specs.get(row["condition"], ()):
            if row["status"] != "ok":
                break
            try:
                self._ensure(spec, row)
            except StoppedError as error:
                row |= {"status": "stopped", "detail": str(error)}
            except Exception as error:  # the boundary: one shard's bug must not take the others along
                if is_transient(error):
                    row |= {"status": "incomplete", "detail": f"{spec.stage}: {error}"}
                else:
                    row |= {"status": "failed", "detail": f"{spec.stage}: {type(error).__name__}: {error}"}
                self._log(spec, row["key"], {"traceback": traceback.format_exc()})
        return pa.Table.from_pylist([row], schema=TICKET)

    def _ensure(self, spec: StageSpec, row: dict[str, Any]) -> None:
        path = self._context.store.path(spec.stage, spec.fingerprint, row["key"])
        if not is_complete(path):
            if self._context.stop.exists():
                row |= {"status": "stopped", "detail": "the run was stopped"}
                return
            self._context.store.describe(spec.stage, spec.fingerprint, spec.key)
            rows = self._input(spec, row)
            with self._activity.shard(spec.stage, row["key"], rows.num_rows):
                output, seconds, deaths = self._compute(spec, row, rows)
            publish(path, output)
            self._context.store.note_cost(path, seconds, output.num_rows, self._context.device if spec.gpu else "cpu")
            self._log(spec, row["key"], {"seconds": seconds, "rows": output.num_rows, "deaths": deaths})
            row["failed"] = sorted({*row["failed"], *failed(read(path, error_columns(path)))})

    def _input(self, spec: StageSpec, row: dict[str, Any]) -> pa.Table:
        """The stage's rows: the ticket's own, or the columns of all it reads side by side."""
        if not spec.upstream:
            return pa.ipc.open_stream(row["rows"]).read_all()
        first, *others = [self._read(source, row["key"]) for source in spec.upstream]
        for other in others:
            first = join_columns(first, other)
        if spec.reference is not None:
            reference = self._read(spec.reference, row["key"])
            if reference.select(["row_id", "sample"]) != first.select(["row_id", "sample"]):
                raise ValueError(f"{spec.reference.stage} {row['key']} holds other prompts than its images")
            first = first.append_column("reference", reference["image"])
            first = first.append_column("reference_sha256", reference["image_sha256"])
        return first

    def _read(self, source: Source, key: str) -> pa.Table:
        return read(self._context.store.path(source.stage, source.fingerprint, (source.keys or {}).get(key, key)))

    def _compute(self, spec: StageSpec, ticket: Mapping[str, Any], rows: pa.Table) -> tuple[pa.Table, float, int]:
        """The shard's output, seconds without loading, and how many workers it has killed in this run."""
        key = ticket["key"]
        marks = Marks(self._context.run / "attempts" / f"{spec.stage}-{spec.fingerprint}-{key}.jsonl")
        deaths = marks.count(None)
        if deaths < self._context.tries:
            with marks.held(None), self._watched(spec, key):
                worker = self._load(spec)
                if isinstance(worker, LooksAhead):
                    worker.look_ahead(self._missing_beside(spec, ticket))
                started = time.perf_counter()
                search = Bisection(worker, worker.failed, spec.stage, lambda entry: self._log(spec, key, entry))
                (output,) = search([rows])
                started += worker.foreign_seconds if isinstance(worker, LooksAhead) else 0.0
        else:
            started = time.perf_counter()
            output = self._one_by_one(spec, key, rows, marks)
        marks.clear()
        return output, time.perf_counter() - started, deaths

    def _missing_beside(self, spec: StageSpec, ticket: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Workers of the condition's variants that read the same rows and have not published this shard."""
        path = self._context.store.path
        return [
            other.worker
            for other in self._specs[ticket["condition"]]
            if other.upstream == spec.upstream and not is_complete(path(other.stage, other.fingerprint, ticket["key"]))
        ]

    def _one_by_one(self, spec: StageSpec, key: str, rows: pa.Table, marks: Marks) -> pa.Table:
        """Each row on its own, marked; a row that has killed its worker ``tries`` times is quarantined.

        Raises:
            DeadlyError: loading the model is what kills, or every row so far has.
        """
        if marks.count(_LOADING) >= self._context.tries:
            raise DeadlyError("loading its model kills the worker (is there room for it?)")
        parts = [rows.slice(i, 1) for i in range(rows.num_rows)]
        names = [row_name(part) for part in parts]
        deadly = [marks.count(name) >= self._context.tries for name in names]
        if sum(deadly) >= HOPELESS and not any(marks.ended(name) for name in names):
            raise DeadlyError(f"every row kills the worker, first {names[0]}")
        with marks.held(_LOADING), self._watched(spec, key):
            worker = self._load(spec)

        def alone(part: pa.Table) -> pa.Table:
            with marks.held(row_name(part)), self._watched(spec, key):
                return worker(part)

        search = Bisection(alone, worker.failed, spec.stage, lambda entry: self._log(spec, key, entry))
        computed = iter(search([part for part, dead in zip(parts, deadly, strict=True) if not dead]))
        output = []
        for part, name, dead in zip(parts, names, deadly, strict=True):
            if dead:
                self._log(spec, key, {"quarantined": name})
            output.append(worker.failed(part, f"{spec.stage}:crash") if dead else next(computed))
        return pa.concat_tables(output).combine_chunks()

    def _load(self, spec: StageSpec) -> Worker:
        """The stage's model, loaded at first need; the module may keep what two specs share.

        The worker before is given away: where loading fails, it may be half changed, and nothing is computed with it.
        """
        if self._worker is None or self._loaded != spec.fingerprint:
            module = importlib.import_module(f"harness.pipeline.stages.{spec.kind}")
            previous, self._worker = self._worker, None
            with self._activity.loading():
                self._worker = module.load(spec.worker, self._context, previous)
            self._loaded = spec.fingerprint
        return self._worker

    @contextmanager
    def _watched(self, spec: StageSpec, key: str) -> Iterator[None]:
        """End this process, with every stack written down, if the block takes longer than the limit."""
        trace = self._context.run / "hangs" / f"{spec.stage}-{key}-{os.getpid()}.txt"
        with watchdog.watched(self._context.limit_s, trace):
            yield

    def _log(self, spec: StageSpec, key: str, entry: dict[str, Any]) -> None:
        """A line in the run's sidecar."""
        log(self._context.run, {"stage": spec.stage, "fingerprint": spec.fingerprint, "shard": key, **entry})


def join_columns(table: pa.Table, other: pa.Table) -> pa.Table:
    """``table`` with the columns of ``other`` that it lacks; both hold the same prompts in the same order.

    Raises:
        ValueError: they do not.
    """
    identity = ["row_id", "sample", "defense"]  # a regeneration's variant is another one
    if table.select(identity) != other.select(identity):
        raise ValueError("tables of other rows cannot stand side by side")
    for name in other.column_names:
        if name not in table.column_names:
            table = table.append_column(other.schema.field(name), other[name])
    return table


def error_columns(path: Path) -> list[str]:
    """Columns of a published shard that ``failed`` looks at."""
    return [c for c in columns(path) if c in KEY or _says_error(c)]


def failed(rows: pa.Table) -> set[str]:
    """Names of the rows that ended in an error of their own; what a regeneration inherits is its image's."""
    names: set[str] = set()
    key = [c for c in KEY if c in rows.column_names]
    for name in filter(_says_error, rows.column_names):
        codes = rows[name]
        own = pc.and_(pc.is_valid(codes), pc.invert(pc.fill_null(pc.starts_with(codes, INHERITED), False)))
        names |= {" ".join(map(str, row.values())) for row in rows.select(key).filter(own).to_pylist()}
    return names


def _says_error(column: str) -> bool:
    return column == "error" or ScorerRef.parse(column).stem.endswith("_error")
