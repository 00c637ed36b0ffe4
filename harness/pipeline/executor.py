"""The run: tickets through stages, phase after phase, by Ray Data or in this process.

One ticket (a one-row table) per shard whose outputs are not all in the store; actors in groups
(``harness.pipeline.schedule``), phase after phase; images and scores pass through the store. Ray's own retries only
restart dead actors; what must hold under any death lives in ``harness.pipeline.stages.base``. When nothing is
missing, Ray is not imported (``harness.pipeline.ray_session`` is the only module that does).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from harness.errors import UserError
from harness.models.library_logs import silenced
from harness.pipeline import schedule
from harness.pipeline.interrupt import Interrupt
from harness.pipeline.outcome import Outcome
from harness.pipeline.outputs import aside
from harness.pipeline.plan import Plan
from harness.pipeline.progress import Progress, Watch
from harness.pipeline.schedule import Phase
from harness.pipeline.spec import StageSpec
from harness.pipeline.stages import activity
from harness.pipeline.stages.base import TICKET, StageActor, WorkerContext, error_columns, failed
from harness.store.shards import Store, is_complete, read


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How a run may use the machine or cluster."""

    executor: str = "ray"  # or "inline": the same stages in this process
    workers: int = 1  # actors of each group; with GPUs, of each stage that needs one
    num_gpus: int = 0
    gpu_memory_gb: float | None = None  # of one GPU; None: not known
    address: str | None = None  # of a running Ray cluster


def execute(
    plan: Plan, context: WorkerContext, resources: Resources, progress: Progress, over_budget: Callable[[int], bool]
) -> Outcome:
    """Compute every missing shard of ``plan``; returns how the tickets ended.

    Args:
        plan: what is to be done.
        context: where.
        resources: with what.
        progress: called twice a second with a snapshot of the run.
        over_budget: called with the number of failed rows so far, those of earlier starts included; True stops the run.

    Raises:
        UserError: a model does not fit a GPU, Ray cannot be reached, or its workers would run other code.
    """
    outcome = Outcome()
    if not plan.missing(context.store) and not plan.first_builds(context.store):
        return outcome
    _clear(context)
    outcome.failed |= _failed_before(plan, context)
    if over_budget(outcome.errors):
        outcome.statuses["stopped"] = len(plan.missing(context.store))
        outcome.details.append(f"{outcome.errors} rows had failed before")
        return outcome
    watch = Watch(plan, context.store, context.run, resources.workers, progress)
    watch.errors = outcome.errors
    interrupt = Interrupt(context.stop, watch.announce)
    executor = _inline if resources.executor == "inline" else _ray
    with interrupt.handled(), watch.watching(), executor(plan, context, resources, watch, interrupt) as run:
        for phase in schedule.cut(plan, resources.num_gpus, resources.gpu_memory_gb):
            tickets = phase_tickets(plan, phase, context.store)
            came = Outcome(failed=set(outcome.failed))
            for table in run(phase, tickets) if tickets else ():
                for ticket in table.to_pylist():
                    came.add(ticket)
                watch.errors = came.errors
                if over_budget(came.errors):
                    context.stop.touch()
            outcome.take(came, len(tickets))
            if not outcome.complete:
                break
        watch.say("leaving the workers")
    return outcome


def _clear(context: WorkerContext) -> None:
    """Remove what an earlier start left: its marks say nothing about this one."""
    context.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in (context.stop, *(context.run / "attempts").glob("*.jsonl")):
        leftover.unlink(missing_ok=True)
    activity.clear(context.run)
    context.store.sweep()


def phase_tickets(plan: Plan, phase: Phase, store: Store) -> list[pa.Table]:
    """A ticket for each artefact, or for each shard, that the phase has to make."""
    if phase.stages == (schedule.BUILD,):
        return [build_ticket(plan.builds[i], i) for i in plan.first_builds(store)]
    return [make_ticket(plan, *place) for place in plan.missing(store, phase.stages)]


def build_ticket(build: StageSpec, index: int) -> pa.Table:
    """What flows for one artefact."""
    row = {
        "condition": index, "shard": 0, "key": build.fingerprint, "rows": b"",
        "status": "ok", "detail": "", "failed": [],
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=TICKET)


def make_ticket(plan: Plan, condition: int, shard: int) -> pa.Table:
    """What flows for one shard of one condition."""
    cut = plan.conditions[condition].shards[shard]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, cut.rows.schema) as writer:
        writer.write_table(cut.rows)
    row = {
        "condition": condition, "shard": shard, "key": cut.key, "rows": sink.getvalue(),
        "status": "ok", "detail": "", "failed": [],
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=TICKET)


Run = Callable[[Phase, list[pa.Table]], Iterator[pa.Table]]  # tickets through a phase, as they come back


def _failed_before(plan: Plan, context: WorkerContext) -> set[str]:
    """Rows that failed in shards that are published already: a repeated command must not begin to count anew."""
    failed_rows: set[str] = set()
    for condition in plan.conditions:
        for spec in condition.stages:
            for shard in condition.shards:
                path = context.store.path(spec.stage, spec.fingerprint, shard.key)
                if is_complete(path):
                    failed_rows |= failed(read(path, error_columns(path)))
    return failed_rows


def specs(plan: Plan, stage: str) -> dict[int, tuple[StageSpec, ...]]:
    """The stage's specs in every condition that has it, one per variant; the builds by their place in the plan."""
    if stage == schedule.BUILD:
        return {i: (build,) for i, build in enumerate(plan.builds)}
    by_condition = {
        i: tuple(s for s in condition.stages if s.stage == stage) for i, condition in enumerate(plan.conditions)
    }
    return {i: specs for i, specs in by_condition.items() if specs}


@contextlib.contextmanager
def _inline(
    plan: Plan, context: WorkerContext, resources: Resources, watch: Watch, interrupt: Interrupt
) -> Iterator[Run]:
    """The same stages, one ticket after the other, in this process."""

    def run(phase: Phase, tickets: list[pa.Table]) -> Iterator[pa.Table]:
        actor = StageActor([specs(plan, name) for name in phase.stages], context)
        yield from map(actor, tickets)

    watch.say("working in this process")
    interrupt.ready = True
    with silenced():
        yield run


@contextlib.contextmanager
def _ray(plan: Plan, context: WorkerContext, resources: Resources, watch: Watch, interrupt: Interrupt) -> Iterator[Run]:
    """One Ray Data plan of actors per phase, consumed here; actors outlive their tickets, not the phase."""
    watch.say(f"joining Ray at {resources.address}" if resources.address else "starting Ray")
    from harness.pipeline import ray_session
    from harness.pipeline.remote_actor import RemoteActor

    with aside(context.run / "log" / "driver.txt"), ray_session.session(resources.address, resources.num_gpus):
        interrupt.install()
        watch.say("asking the workers what code they run")
        code = ray_session.require_same_code(_packages(plan), _libraries(plan))
        interrupt.ready = True

        def run(phase: Phase, tickets: list[pa.Table]) -> Iterator[pa.Table]:
            watch.say("starting workers")
            groups = [
                (
                    group,
                    {
                        "stages": [specs(plan, name) for name in group.stages],
                        "context": context,
                        "gpu_share": group.gpu,
                        "code": code,
                    },
                )
                for group in phase.actor_groups
            ]
            yield from ray_session.stream(
                RemoteActor,
                tickets,
                groups,
                size=min(resources.workers, len(tickets)),
                blind=bool(resources.num_gpus),
                # A shard whose every row hangs makes no progress for this long, and ends well.
                patience_s=context.limit_s * context.tries * (1 + plan.profile.shard_rows),
            )

        yield run


def _libraries(plan: Plan) -> list[str]:
    """Every library that a result of the plan depends on."""
    return sorted({name for spec in _all_specs(plan) for name in spec.key.get("libraries", {})})


def _packages(plan: Plan) -> list[str]:
    """Every import package beside ours whose modules workers run."""
    return sorted({name for spec in _all_specs(plan) for name in spec.packages})


def _all_specs(plan: Plan) -> list[StageSpec]:
    return [*plan.builds, *(spec for condition in plan.conditions for spec in condition.stages)]


def check(resources: Resources) -> None:
    """Refuse what could only wait for ever.

    Raises:
        UserError: more workers than GPUs, a cluster that does not answer, a folder that Ray cannot use.
    """
    if resources.executor == "ray":
        from harness.pipeline import ray_session

        ray_session.check_before(resources.address)
    if resources.num_gpus and resources.workers > resources.num_gpus:
        raise UserError(f"--workers {resources.workers}: one GPU each, but --num-gpus is {resources.num_gpus}")
