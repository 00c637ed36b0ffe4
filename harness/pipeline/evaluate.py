"""One evaluation, from request to numbers: plan, run what is missing, gather, count, write.

runs/<run>/scores.parquet   every row of every condition, raw scores, no images
runs/<run>/cells.json       the counts; report.md, report.html and contact.png are made from them
runs/<run>/costs.json       seconds, from the store's sidecars
runs/<run>/run.json         command, plan, fingerprints and what they are made of; written last

Each file appears whole or not at all, and a killed run's are written anew by the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import TransientError, UserError
from harness.metrics import measure
from harness.metrics.cells import Cell
from harness.pipeline import (
    accepted,
    build_progress,
    builds,
    costs,
    plan,
    prerequisites,
    results,
    run_status,
    set_metrics,
)
from harness.pipeline.plan import Plan
from harness.pipeline.progress import Progress, Snapshot
from harness.pipeline.record import record_of
from harness.pipeline.request import Places, Request, choose
from harness.pipeline.results import gather, images_of
from harness.pipeline.stage_kinds import declared
from harness.pipeline.stages.base import failed
from harness.report import writers
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store, columns, discarded, is_complete

if TYPE_CHECKING:
    from harness.pipeline.executor import Resources
    from harness.pipeline.outcome import Outcome

_PATIENCE_S = {"cuda": 3600.0, "cpu": 24 * 3600.0}  # for a shard; a large model takes hours over one on a CPU


@dataclass(frozen=True)
class Budget:
    """How many rows may fail before a run counts as bad: a number of rows, or a share."""

    rows: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"0"``, ``"12"`` or ``"5%"``.

        Raises:
            UserError: anything else.
        """
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
        if match is None or (match[2] and float(match[2]) > 100):
            raise UserError(f"--max-errors {text!r}: give a number of rows (0, 12) or a share (5%)")
        return cls(rows=int(match[1])) if match[1] else cls(share=float(match[2]) / 100)

    def exceeded(self, errors: int, rows: int) -> bool:
        """Whether ``errors`` failed rows out of ``rows`` are too many."""
        return errors > (self.rows if self.rows is not None else (self.share or 0.0) * rows)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What an evaluation leaves: the plan, how it went, its cells, where things lie."""

    plan: Plan
    run: Path
    outcome: Outcome | None  # None: everything was in the store
    cells: tuple[Cell, ...] = ()
    errors: int = 0  # images that were not drawn or not scored in full; what a regeneration inherits is its image's
    rows: int = 0  # images in all

    @property
    def paths(self) -> dict[str, Path]:
        return {
            "scores": self.run / "scores.parquet",
            "report": self.run / "report.md",
            "page": self.run / "report.html",
            "contact": self.run / "contact.png",
        }


class Overview(NamedTuple):
    """A plan to look at."""

    plan: Plan
    missing: list[str]  # what the run lacks on this machine, a line for each thing, with how to get it
    unread: list[str]  # benchmarks of which only the number of rows is known


def file_hashes(places: Places) -> FileHashes:
    """Hashes of files, kept in the store where there is one."""
    Store.check(places.store)
    return FileHashes(places.store / "sha256.json" if Store.is_at(places.store) else None)


def prepare(request: Request, places: Places, hashes: FileHashes | None = None) -> Plan:
    """The plan of ``request``, after checking that all it needs is on this machine.

    Writes nothing, except that a store that is there keeps the hashes of files.

    Args:
        request: what is asked for.
        places: its folders.
        hashes: of files, where several plans are made; by default ``file_hashes``.

    Raises:
        UserError: a wrong name, file or store; or one message that lists everything missing and how to get it.
    """
    Store.check(places.store)
    accepted.check(request.accept_change)
    chosen = choose(request, places.roots, places.data)
    prerequisites.require(
        prerequisites.prerequisites(request, chosen, places.roots),
        chosen.profile,
        places.data,
        prerequisites.scorer_names(request, chosen),
    )
    made = plan.make(request, places.roots, places.data, hashes or file_hashes(places))
    return accepted.adopt(made, Store(places.store), request.accept_change)


def overview(request: Request, places: Places) -> Overview:
    """The plan of ``request`` also where weights or prompts are missing, with what is.

    Writes nothing; prompts that are not here are planned as blank rows, as many as their card counts.

    Raises:
        UserError: a wrong name, file or store; or something missing without which nothing can be planned.
    """
    Store.check(places.store)
    accepted.check(request.accept_change)
    chosen = choose(request, places.roots)
    needed = prerequisites.prerequisites(request, chosen, places.roots)
    names = prerequisites.scorer_names(request, chosen)
    lacking = prerequisites.missing(needed, chosen.profile, places.data, names)
    try:
        made = plan.make(request, places.roots, places.data, file_hashes(places), expected=True)
    except UserError:
        prerequisites.require(needed, chosen.profile, places.data, names)  # which may well be the reason
        raise
    made = accepted.adopt(made, Store(places.store), request.accept_change)
    return Overview(made, lacking, [] if request.images else plan.absent_benchmarks(chosen, places.data))


def evaluate(
    request: Request, places: Places, resources: Resources, budget: Budget, progress: Progress, command: str
) -> Finished:
    """Run what is not in the store yet and count; ``cells`` is empty unless every shard is there.

    Raises:
        UserError: see ``prepare``; or a folder cannot be written, images were discarded, another run holds the store.
        TransientError: a disk is full.
        ConservationError: rows were lost or doubled (a bug, never a number).
    """
    made = prepare(request, places)
    warn_left_out(made)
    run = places.out / made.name
    with held(made, places, run, command) as hold:
        outcome = hold.compute(resources, budget, progress)
        if outcome is not None and not outcome.complete:
            hold.status.finished(outcome, outcome.errors, complete=False)
            return Finished(plan=made, run=run, outcome=outcome, errors=outcome.errors)
        hold.say(progress, "counting")
        finished = _conclude(made, places, run, outcome, command)
        hold.status.finished(outcome, finished.errors, complete=True)
        return finished


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A run that this process holds: nobody else writes what it writes."""

    plan: Plan
    store: Store
    run: Path
    status: run_status.Keeper

    def compute(self, resources: Resources, budget: Budget, progress: Progress) -> Outcome | None:
        """Compute what is not in the store yet; None where everything is.

        Raises:
            UserError: images that are needed were discarded.
        """
        if not self.plan.missing(self.store):
            return None
        _require_undiscarded(self.plan, self.store)
        builds.require_fitting(self.plan, self.store)
        from harness.pipeline import executor
        from harness.pipeline.stages.base import WorkerContext

        device = "cuda" if resources.num_gpus else "cpu"
        context = WorkerContext(
            store=self.store,
            run=self.run,
            device=device,
            limit_s=_PATIENCE_S[device],
            silence_s=builds.SILENCE_S[device],
        )
        warn_of_builds(self.plan, self.store)
        too_many = _too_many(self.plan.request, budget, self.plan.num_rows)
        return executor.execute(self.plan, context, resources, self.status.heard(progress), too_many)

    def say(self, progress: Progress, doing: str) -> None:
        """Tell what the driver is doing now."""
        self.status.heard(progress)(Snapshot(doing=doing))


@contextlib.contextmanager
def held(made: Plan, places: Places, run: Path, command: str) -> Iterator[Hold]:
    """Hold what carrying out ``made`` writes, and keep the run's status, while the block runs.

    Raises:
        UserError: a folder cannot be written, or another run holds some of it.
        TransientError: a disk is full.
    """
    _check_out(run)
    store = Store.open(places.store)
    with _disks(), store.lock(_writes(made, store, run)):
        _make_out(run)
        with run_status.kept(run, command) as status:
            yield Hold(plan=made, store=store, run=run, status=status)


def _too_many(request: Request, budget: Budget, rows: int) -> Callable[[int], bool]:
    """What says whether so many failed rows stop the run.

    Of images that were not drawn here the readable ones are wanted, however many others cannot be read: that too many
    failed is said in the end.
    """
    if request.images is not None:
        return lambda errors: False
    return lambda errors: budget.exceeded(errors, rows)


def _writes(made: Plan, store: Store, run: Path) -> set[str]:
    """What the run will write: its own folder, and the shards that are missing."""
    missing = {
        store.holding(spec.stage, spec.fingerprint)
        for condition in made.conditions
        for spec in condition.stages
        if not all(is_complete(store.path(spec.stage, spec.fingerprint, s.key)) for s in condition.shards)
    }
    return {str(run.resolve()), *missing}


@contextlib.contextmanager
def _disks() -> Iterator[None]:
    """A disk that takes no more is no bug: the same command goes on once there is room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise TransientError(f"{error.strerror}{where}; make room, and run the same command again to go on") from error


def warn_left_out(made: Plan) -> None:
    """Say in one line, on standard error, which pairs "all" does not mean."""
    if made.left_out:
        pairs = ", ".join(f"{defense} over {bench} ({concept})" for defense, bench, concept in made.left_out)
        print(f"harness: left out, no card declares it (or name a --concept): {pairs}", file=sys.stderr, flush=True)


def warn_of_builds(made: Plan, store: Store) -> None:
    """Say on standard error, before anything runs, what will be built first and what that takes."""
    for cost in build_progress.costs(made, store):
        print(f"harness: builds first, and once: {cost}; stopped, it goes on from there", file=sys.stderr, flush=True)


def _require_undiscarded(made: Plan, store: Store) -> None:
    """Refuse to compute from images that were discarded, before any model is loaded.

    Raises:
        UserError: a stage that is not done yet needs them.
    """
    seen: set[Path] = set()
    for condition, spec, shard in ((c, p, s) for c in made.conditions for p in c.stages for s in c.shards):
        if not declared(spec.kind).reads_images or is_complete(store.path(spec.stage, spec.fingerprint, shard.key)):
            continue
        for source in (*spec.upstream, *((spec.reference,) if spec.reference else ())):
            path = store.path(source.stage, source.fingerprint, (source.keys or {}).get(shard.key, shard.key))
            if path in seen or not is_complete(path) or "image" not in columns(path):
                continue
            seen.add(path)
            if discarded(path):
                raise UserError(
                    f"{spec.stage} needs images of {condition.defense} over {condition.bench} that were discarded: "
                    f"remove their shards (`harness store prune --stage {source.stage} --fingerprint "
                    f"{source.fingerprint}`) and repeat the run's own command, which draws them again"
                )


def _check_out(run: Path) -> None:
    """Refuse a run's folder that cannot be made; writes nothing."""
    there = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is no folder"
        raise UserError(f"--out: {run} cannot be written: {there} {why}")


def _make_out(run: Path) -> None:
    """Make the run's folder, and remove what a killed run was writing in it."""
    try:
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"--out: {run} cannot be written: {error.strerror}") from None
    if not os.access(run, os.W_OK):
        raise UserError(f"--out: {run} cannot be written")
    for torn in (*run.glob(".tmp/*"), *(p for p in run.iterdir() if re.fullmatch(r"\..+\.[0-9a-f]{32}", p.name))):
        torn.unlink(missing_ok=True)


def _conclude(made: Plan, places: Places, run: Path, outcome: Outcome | None, command: str) -> Finished:
    """Count a complete run and have its writers write its folder."""
    store = Store(places.store)
    scores = gather(made, store)
    provenances = results.provenances(made)
    counted = measure.measure(scores, made.policies, provenances, made.means)
    counted += set_metrics.measure(made, store, provenances, scores)
    record = record_of(made, command) | {"computed": costs.computed(made, store)}
    contents = writers.RunContents(
        folder=run,
        scores=scores,
        cells=counted,
        costs=costs.of(made, store, counted),
        record=record,
        policies=made.policies,
        image_shards=images_of(made, store),
        roots=places.roots,
        is_repeated=outcome is None and _recorded(run) == _without_command(record),
    )
    writers.write_all(contents)
    errors = len(failed(scores))
    return Finished(plan=made, run=run, outcome=outcome, cells=tuple(counted), errors=errors, rows=scores.num_rows)


def _recorded(run: Path) -> Any:
    """What the folder's files were made from; None where they are not complete."""
    try:
        return _without_command(json.loads((run / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _without_command(about: Mapping[str, Any]) -> Any:
    """A run's record as its file has it, however it was asked for."""
    return json.loads(json.dumps({**about, "command": None}))
