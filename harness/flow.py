"""The run: tickets through stages, by Ray Data or in this process. The only module that imports Ray.

One ticket (a one-row table) per shard whose outputs are not all in the store; one actor class per
stage; images and scores pass through the store. Ray's own retries only restart dead actors; what
must hold under any death lives in ``harness.stages.base``. When nothing is missing, Ray is not
imported.
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
from harness.plan import Plan, StageSpec
from harness.stages.base import TICKET, Site, Stage

_ACTOR_CPUS = 0.01  # bookkeeping only: actors must never reserve all CPUs
_PAUSE_S = 0.5  # between two looks at the store, for the progress display


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How a run may use the machine or cluster."""

    executor: str = "ray"  # or "inline": the same stages in this process
    workers: int = 1  # actors of the generate stage
    num_gpus: int = 0
    address: str | None = None  # of a running Ray cluster


@dataclass
class Outcome:
    """How every ticket ended: counts by status, and what was said of those not ok."""

    statuses: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    errors: int = 0  # rows that ended in an error, in the shards computed now

    @property
    def complete(self) -> bool:
        return set(self.statuses) <= {"ok"}

    def add(self, ticket: dict[str, Any]) -> None:
        self.statuses[ticket["status"]] += 1
        self.errors += ticket["errors"]
        if ticket["detail"] and ticket["detail"] not in self.details:
            self.details.append(ticket["detail"])


Progress = Callable[[dict[str, tuple[int, int]]], None]  # stage -> (shards done, shards in all)


def execute(
    plan: Plan, site: Site, resources: Resources, progress: Progress, over_budget: Callable[[int], bool]
) -> Outcome:
    """Compute every missing shard of ``plan``; returns how the tickets ended.

    Args:
        over_budget: told the number of failed rows so far; True stops the run.
    """
    outcome = Outcome()
    missing = plan.missing(site.store)
    if not missing:
        return outcome
    site.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in (site.stop, *(site.run / "attempts").glob("*.jsonl")):
        leftover.unlink(missing_ok=True)  # marks of an earlier start say nothing about this one
    site.store.sweep()
    tickets = [_ticket(plan, chain, shard) for chain, shard in missing]
    run = _inline if resources.executor == "inline" else _ray
    with _interruptible(site), _watching(plan, site, progress):
        for table in run(plan, site, resources, tickets):
            for ticket in table.to_pylist():
                outcome.add(ticket)
            if over_budget(outcome.errors):
                site.stop.touch()
    lost = len(tickets) - sum(outcome.statuses.values())
    if lost:  # Ray must never lose a ticket silently
        outcome.statuses["lost"] = lost
        outcome.details.append(f"{lost} of {len(tickets)} tickets did not come back")
    return outcome


def _ticket(plan: Plan, chain: int, shard: int) -> pa.Table:
    found = plan.chains[chain].shards[shard]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, found.rows.schema) as writer:
        writer.write_table(found.rows)
    row = {
        "chain": chain, "shard": shard, "key": found.key, "rows": sink.getvalue(),
        "status": "ok", "detail": "", "errors": 0,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=TICKET)


def _specs(plan: Plan, stage: str) -> dict[int, StageSpec]:
    """The stage's spec in every chain that has it."""
    return {i: s for i, chain in enumerate(plan.chains) for s in chain.stages if s.stage == stage}


def _inline(plan: Plan, site: Site, resources: Resources, tickets: list[pa.Table]) -> Iterator[pa.Table]:
    """The same stages, one ticket after the other, in this process."""
    stages = [Stage(_specs(plan, name), site) for name in plan.stage_names()]
    for ticket in tickets:
        for stage in stages:
            ticket = stage(ticket)
        yield ticket


def _ray(plan: Plan, site: Site, resources: Resources, tickets: list[pa.Table]) -> Iterator[pa.Table]:
    """One Ray Data plan of actor stages, consumed here; actors outlive their tickets, not the run."""
    # Before the import: raylet notices of dead actors would otherwise land on our standard output.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import logging

    import ray
    from ray.data import ActorPoolStrategy, DataContext

    handler = signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(sys.stderr):
        ray.init(
            address=resources.address,
            num_gpus=None if resources.address else resources.num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        signal.signal(signal.SIGINT, handler)  # Ray may have replaced it
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False
        context.execution_options.preserve_order = False
        context.execution_no_progress_timeout_s = -1 if site.limit_s <= 0 else 4 * site.limit_s
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            dataset = ray.data.from_arrow(tickets)
            for name in plan.stage_names():
                actors, gpus = _share(name, resources, len(tickets))
                dataset = dataset.map_batches(
                    Stage,
                    fn_constructor_args=(_specs(plan, name), site),
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ActorPoolStrategy(size=actors),
                    num_cpus=_ACTOR_CPUS,
                    num_gpus=gpus,
                    # Ray leaves the variable alone where no GPU is asked for, and such an actor would see them all.
                    **(
                        {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}
                        if resources.num_gpus and not gpus
                        else {}
                    ),
                )
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        finally:
            ray.shutdown()


def _share(stage: str, resources: Resources, tickets: int) -> tuple[int, float]:
    """(actors, GPUs each) of a stage: generation takes the GPUs, scorers of this profile run on CPUs."""
    if stage != "generate":
        return 1, 0
    return min(resources.workers, tickets), 1 if resources.num_gpus else 0


def check(resources: Resources) -> None:
    """Refuse what could only wait for ever.

    Raises:
        UserError: more workers than GPUs.
    """
    if resources.num_gpus and resources.workers > resources.num_gpus:
        raise UserError(f"--workers {resources.workers}: one GPU each, but --num-gpus is {resources.num_gpus}")


@contextlib.contextmanager
def _interruptible(site: Site) -> Iterator[None]:
    """First Ctrl-C: finish what is being computed and stop. Second: leave at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if site.stop.exists():
            os._exit(130)
        site.stop.touch()
        print(
            "stopping: shards at work finish their stage (Ctrl-C again to leave at once)", file=sys.stderr, flush=True
        )

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _watching(plan: Plan, site: Site, progress: Progress) -> Iterator[None]:
    """Report how many shards of each stage are published, twice a second, while the block runs."""
    paths: dict[str, list[Any]] = {}
    for chain in plan.chains:
        for spec in chain.stages:
            for shard in chain.shards:
                paths.setdefault(spec.stage, []).append(site.store.path(spec.stage, spec.fingerprint, shard.key))
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
