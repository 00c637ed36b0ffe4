"""The run: tickets through stages, by Ray Data or in this process. The only module that imports Ray.

One ticket (a one-row table) per shard whose outputs are not all in the store; actors in groups
(``harness.pipeline.schedule``), phase after phase; images and scores pass through the store. Ray's own retries only
restart dead actors; what must hold under any death lives in ``harness.pipeline.stages.base``. When nothing is
missing, Ray is not imported.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pyarrow as pa

from harness.errors import UserError
from harness.pipeline import schedule
from harness.pipeline.plan import Plan
from harness.pipeline.schedule import Phase
from harness.pipeline.stage_specs import StageSpec
from harness.pipeline.stages.base import TICKET, StageActor, WorkerContext, error_columns, failed
from harness.store.shards import is_complete, read

_ACTOR_CPUS = 0.01  # bookkeeping only: actors must never reserve all CPUs
_PAUSE_S = 0.5  # between two looks at the store, for the progress display


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How a run may use the machine or cluster."""

    executor: str = "ray"  # or "inline": the same stages in this process
    workers: int = 1  # actors of each group; with GPUs, of each stage that needs one
    num_gpus: int = 0
    gpu_memory_gb: float | None = None  # of one GPU; None: not known
    address: str | None = None  # of a running Ray cluster


@dataclass
class Outcome:
    """How every ticket ended: counts by status, and what was said of those not ok."""

    statuses: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)  # rows that ended in an error, now or in an earlier start

    @property
    def complete(self) -> bool:
        return set(self.statuses) <= {"ok"}

    @property
    def errors(self) -> int:
        """How many rows failed, each once."""
        return len(self.failed)

    def add(self, ticket: dict[str, Any]) -> None:
        self.statuses[ticket["status"]] += 1
        self.failed.update(ticket["failed"])
        if ticket["detail"] and ticket["detail"] not in self.details:
            self.details.append(ticket["detail"])

    def take(self, phase: Outcome, tickets: int) -> None:
        """Add how a phase went; Ray must never lose one of its tickets silently."""
        lost = tickets - sum(phase.statuses.values())
        if lost:
            phase.statuses["lost"] = lost
            phase.details.append(f"{lost} of {tickets} tickets did not come back")
        self.statuses += phase.statuses
        self.details += [d for d in phase.details if d not in self.details]
        self.failed |= phase.failed


Progress = Callable[[dict[str, tuple[int, int]]], None]  # stage -> (shards done, shards in all)


def execute(
    plan: Plan, context: WorkerContext, resources: Resources, progress: Progress, over_budget: Callable[[int], bool]
) -> Outcome:
    """Compute every missing shard of ``plan``; returns how the tickets ended.

    Args:
        over_budget: told the number of failed rows so far, those of earlier starts too; True stops the run.

    Raises:
        UserError: a model does not fit a GPU, or Ray cannot be reached.
    """
    outcome = Outcome()
    if not plan.missing(context.store):
        return outcome
    context.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in (context.stop, *(context.run / "attempts").glob("*.jsonl")):
        leftover.unlink(missing_ok=True)  # marks of an earlier start say nothing about this one
    context.store.sweep()
    outcome.failed |= _failed_before(plan, context)
    if over_budget(outcome.errors):
        outcome.statuses["stopped"] = len(plan.missing(context.store))
        outcome.details.append(f"{outcome.errors} rows had failed before")
        return outcome
    executor = _inline if resources.executor == "inline" else _ray
    with _interruptible(context), _watching(plan, context, progress), executor(plan, context, resources) as run:
        for phase in schedule.cut(plan, resources.num_gpus, resources.gpu_memory_gb):
            tickets = [make_ticket(plan, *place) for place in plan.missing(context.store, phase.stages)]
            came = Outcome(failed=set(outcome.failed))
            for table in run(phase, tickets) if tickets else ():
                for ticket in table.to_pylist():
                    came.add(ticket)
                if over_budget(came.errors):
                    context.stop.touch()
            outcome.take(came, len(tickets))
            if not outcome.complete:
                break
    return outcome


def make_ticket(plan: Plan, condition: int, shard: int) -> pa.Table:
    """What flows for one shard of one condition."""
    found = plan.conditions[condition].shards[shard]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, found.rows.schema) as writer:
        writer.write_table(found.rows)
    row = {
        "condition": condition, "shard": shard, "key": found.key, "rows": sink.getvalue(),
        "status": "ok", "detail": "", "failed": [],
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=TICKET)


Run = Callable[[Phase, list[pa.Table]], Iterator[pa.Table]]  # tickets through a phase, as they come back


def _failed_before(plan: Plan, context: WorkerContext) -> set[str]:
    """Rows that failed in shards that are published already: a repeated command must not begin to count anew."""
    found: set[str] = set()
    for condition in plan.conditions:
        for spec in condition.stages:
            for shard in condition.shards:
                path = context.store.path(spec.stage, spec.fingerprint, shard.key)
                if is_complete(path):
                    found |= failed(read(path, error_columns(path)))
    return found


def specs(plan: Plan, stage: str) -> dict[int, tuple[StageSpec, ...]]:
    """The stage's specs in every condition that has it, one per variant."""
    found = {i: tuple(s for s in condition.stages if s.stage == stage) for i, condition in enumerate(plan.conditions)}
    return {i: specs for i, specs in found.items() if specs}


@contextlib.contextmanager
def _inline(plan: Plan, context: WorkerContext, resources: Resources) -> Iterator[Run]:
    """The same stages, one ticket after the other, in this process."""

    def run(phase: Phase, tickets: list[pa.Table]) -> Iterator[pa.Table]:
        actor = StageActor([specs(plan, name) for name in phase.stages], context)
        yield from map(actor, tickets)

    yield run


@contextlib.contextmanager
def _ray(plan: Plan, context: WorkerContext, resources: Resources) -> Iterator[Run]:
    """One Ray Data plan of actors per phase, consumed here; actors outlive their tickets, not the phase."""
    # Before the import: raylet notices of dead actors would otherwise land on our standard output.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import logging

    import ray
    from ray.data import DataContext

    handler = signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(
                address=resources.address,
                num_gpus=None if resources.address else resources.num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except ConnectionError as error:
            where = f"at RAY_ADDRESS={resources.address}" if resources.address else "on this machine"
            raise UserError(f"Ray cannot be reached {where}: {str(error).splitlines()[0]}") from error
        signal.signal(signal.SIGINT, handler)  # Ray may have replaced it
        data_context = DataContext.get_current()
        data_context.enable_progress_bars = False
        data_context.execution_options.verbose_progress = False
        data_context.execution_options.preserve_order = False
        # A shard whose every row hangs makes no progress for this long, and ends well.
        data_context.execution_no_progress_timeout_s = context.limit_s * context.tries * (1 + plan.profile.shard_rows)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield lambda phase, tickets: _stream(plan, context, resources, phase, tickets)
        finally:
            ray.shutdown()


def _stream(
    plan: Plan, context: WorkerContext, resources: Resources, phase: Phase, tickets: list[pa.Table]
) -> Iterator[pa.Table]:
    """Tickets through the actor groups of a phase."""
    import ray
    from ray.data import ActorPoolStrategy

    dataset = ray.data.from_arrow(tickets)
    for group in phase.actor_groups:
        blind = resources.num_gpus and not group.gpu
        dataset = dataset.map_batches(
            StageActor,
            fn_constructor_args=([specs(plan, name) for name in group.stages], context, group.gpu),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(resources.workers, len(tickets))),
            num_cpus=_ACTOR_CPUS,
            num_gpus=group.gpu,
            # Ray leaves the variable alone where no GPU is asked for, and such an actor would see them all.
            **({"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}} if blind else {}),
        )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def check(resources: Resources) -> None:
    """Refuse what could only wait for ever.

    Raises:
        UserError: more workers than GPUs.
    """
    if resources.num_gpus and resources.workers > resources.num_gpus:
        raise UserError(f"--workers {resources.workers}: one GPU each, but --num-gpus is {resources.num_gpus}")


@contextlib.contextmanager
def _interruptible(context: WorkerContext) -> Iterator[None]:
    """First Ctrl-C: finish what is being computed and stop. Second: leave at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if context.stop.exists():
            os._exit(130)
        context.stop.touch()
        print(
            "stopping: shards at work finish their stage (Ctrl-C again to leave at once)", file=sys.stderr, flush=True
        )

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _watching(plan: Plan, context: WorkerContext, progress: Progress) -> Iterator[None]:
    """Report how many shards of each stage are published, twice a second, while the block runs."""
    paths: dict[str, list[Any]] = {}
    for condition in plan.conditions:
        for spec in condition.stages:
            for shard in condition.shards:
                paths.setdefault(spec.stage, []).append(context.store.path(spec.stage, spec.fingerprint, shard.key))
    done = threading.Event()

    def report() -> None:
        progress({stage: (sum(p.exists() for p in files), len(files)) for stage, files in paths.items()})

    def watch() -> None:
        while not done.wait(_PAUSE_S):
            report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        report()
