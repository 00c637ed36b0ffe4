"""``harness sweep``: one evaluation over many settings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, running
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.cards.sweep import Mode
    from harness.pipeline.request import Places
    from harness.pipeline.sweep import FinishedSweep
    from harness.pipeline.sweep_plan import Sweep

_SUBMIT = "submit"
_SUBMITTED = "HARNESS_SUBMITTED"  # set for the process that `submit` starts: it is the one that works

Card = Annotated[
    str | None,
    typer.Option("--card", help="A sweep card; other options replace what it says. See `harness list sweeps`."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE,...",
        help="An axis: regen.alpha=0.3,0.5,0.7; likewise defense.PARAMETER, backbone.PARAMETER, captioner. Repeatable.",
    ),
]
Action = Annotated[
    str | None, typer.Argument(metavar=f"[{_SUBMIT}]", help="Detached: returns at once, and survives its shell.")
]
Defense = Annotated[str | None, typer.Option("--defense", "-d", help="Defenses, comma separated.")]
Bench = Annotated[str | None, typer.Option("--bench", "-b", help="Benchmarks, comma separated.")]
Regen = Annotated[
    str | None, typer.Option("--regen", "-r", help="Regenerators, comma separated, or 'none'. Default: the profile's.")
]
Backbones = Annotated[
    str | None, typer.Option("--backbone", help="Backbones, comma separated. Default: the profile's.")
]
Zip = Annotated[bool, typer.Option("--zip", help="Take the axes value by value instead of every combination.")]
OneAtATime = Annotated[
    bool, typer.Option("--one-at-a-time", help="Change one axis at a time, the others as the cards have them.")
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", envvar="HARNESS_PROFILE", help="Which models play which role. Default: paper."),
]
Concept = Annotated[str | None, typer.Option("--concept", help="What is removed, if not the benchmark's own concept.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows of each benchmark; stamped.")]
AcceptChange = Annotated[
    str | None, typer.Option("--accept-change", help="Take stored results of other code, libraries; stamped.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Name the cells and what they share, and stop.")]
Json = Annotated[
    bool, typer.Option("--json", help="Events on standard output, one JSON object a line; see docs/sweeps.md.")
]
Seeds = Annotated[str | None, typer.Option("--seed", help="Seeds, comma separated, each for every row.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "sweep",
        epilog=options.examples(
            "harness sweep --defense rece --bench ring-a-bell-k77 --profile shapes "
            "--set regen.alpha=0.3,0.5,0.7 --set regen.lam=0.5,1,2"
        ),
    )(sweep)


def sweep(
    context: typer.Context,
    action: Action = None,
    card: Card = None,
    defense: Defense = None,
    bench: Bench = None,
    regen: Regen = None,
    backbones: Backbones = None,
    seeds: Seeds = None,
    set_: Set = None,
    zip_: Zip = False,
    one_at_a_time: OneAtATime = False,
    profile: Profile = None,
    concept: Concept = None,
    limit: Limit = None,
    accept_change: AcceptChange = None,
    out: options.Out = options.OUT,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    num_gpus: running.NumGpus = None,
    gpu_memory: running.GpuMemory = None,
    workers: running.Workers = None,
    executor: running.Executor = "ray",
    address: running.Address = None,
    max_errors: running.MaxErrors = "5%",
    quiet: running.Quiet = False,
    verbose: running.Verbose = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Evaluate every combination of settings as one run: what cells share is computed once.

    Lists (--defense, --bench, --regen, --backbone, --seed) and axes (--set) give a cell for every combination; --zip
    takes axes value by value; --one-at-a-time changes one axis at a time around the cards' own values. The result is
    one table, a plot for each axis, and the best cell with what choosing it did to its number. The same command again
    goes on where it stopped; a finished one answers at once.

    `harness sweep submit ...` starts the same detached; `harness status` and `harness stop` look after it.
    """
    if action not in (None, _SUBMIT):
        raise UserError(f"harness sweep {action!r}: the one word it takes is {_SUBMIT!r}; settings go into options")
    places = options.places(store, out, data, cards)
    asked = _asked(context.params, places)
    if dry_run:
        _show_plan(asked, places, json)
    elif action == _SUBMIT and os.environ.pop(_SUBMITTED, None) is None:
        _submit(asked, places, json)
    else:
        machine = running.Machine(num_gpus, gpu_memory, workers, executor, address)
        _run(asked, places, machine, running.Manner(max_errors, json, quiet=quiet, verbose=verbose))


def _asked(chosen: Mapping[str, Any], places: Places) -> Sweep:
    """The sweep in a command's parameters, over what its card says.

    Raises:
        UserError: nothing to combine, or settings that contradict each other.
    """
    from harness.pipeline.sweep_grid import LISTS, Grid, parse
    from harness.pipeline.sweep_plan import Sweep

    card = _card(chosen["card"], places)
    axes = parse(chosen["set_"] or [])
    said_lists = {name: chosen.get(name, chosen.get(f"{name}s")) for name in LISTS}  # other commands take one backbone
    lists = {name: options.split(text) if text is not None else () for name, text in said_lists.items()}
    for name, text in said_lists.items():
        if text is not None and not lists[name]:
            raise UserError(f"--{name} {text!r} names nothing; leave it out, or say what is wanted")
    if chosen["zip_"] and chosen["one_at_a_time"]:
        raise UserError("--zip and --one-at-a-time are two ways to combine: choose one")
    mode: Mode | None = "zip" if chosen["zip_"] else "one-at-a-time" if chosen["one_at_a_time"] else None
    grid = Grid(lists=lists, axes=axes, mode=mode or "product") if card is None else card.under(lists, axes, mode)
    for name in ("defense", "bench"):
        if not grid.lists.get(name) and name not in grid.axes:
            raise UserError(f"--{name} says over what to sweep (or --card names a sweep; see `harness list sweeps`)")
    said = card.card if card is not None else None
    return Sweep(
        grid=grid,
        card=said and said.name,
        profile=chosen["profile"] or (said and said.profile) or "paper",
        concept=chosen["concept"] or (said and said.concept),
        limit=chosen["limit"] or (said and said.limit),
        accept_change=options.split(chosen["accept_change"] or ""),
    )


def _card(name: str | None, places: Places) -> Any:
    from harness.cards.load import load_card
    from harness.cards.sweep import SweepCard
    from harness.pipeline.sweep_grid import CardGrid

    return None if name is None else CardGrid(load_card(SweepCard, name, places.roots))


def _show_plan(asked: Sweep, places: Places, json: bool) -> None:
    """The cells, and how often each stage is computed for them."""
    from harness.pipeline.sweep_plan import plan_of
    from harness.pipeline.sweep_table import describe
    from harness.store.shards import Store

    planned = plan_of(asked, places)
    stages = planned.work(Store(places.store))
    if json:
        options.emit({"run": asked.name, "cells": [describe(c) for c in planned.cells], "stages": stages})
        return
    typer.echo(f"{asked.name}: {len(planned.cells)} cells, {planned.whole.num_rows} images")
    for cell in planned.cells:
        typer.echo(f"  {cell}")
    for name, work in stages.items():
        typer.echo(
            f"{name}: computed {work['fingerprints']} times, {work['missing_shards']} of {work['shards']} shards to do"
        )


def _submit(asked: Sweep, places: Places, json: bool) -> None:
    """Check what can be checked at once, start the same command detached, and say how to look after it."""
    from harness.pipeline import detached
    from harness.pipeline.sweep_plan import cells_of

    cells = cells_of(asked, places)
    submitted = detached.submit(places.out / asked.name, sys.argv[1:], {_SUBMITTED: "1"}, running.command_line())
    if json:
        options.emit({"event": "submitted", "run": asked.name, "cells": len(cells), **submitted.to_json()})
        return
    typer.echo(f"{asked.name}: {len(cells)} cells, {submitted.holder}; its log: {submitted.log}")
    typer.echo(f"harness status {asked.name} says how far it is; harness stop {asked.name} ends it")


def _run(asked: Sweep, places: Places, machine: running.Machine, manner: running.Manner) -> None:
    """Carry out and print; leaves with the exit code that says how it went unless that is 0."""
    from harness.cli.progress import Display
    from harness.pipeline.evaluate import Budget
    from harness.pipeline.sweep import run_sweep
    from harness.report import sweep as sweep_report

    budget = Budget.parse(manner.max_errors)
    events = _Events(asked.name) if manner.json else None
    with Display(quiet=manner.quiet or manner.json, verbose=manner.verbose) as display:
        hear = events.progress if events is not None else display
        finished = run_sweep(asked, places, running.resources(machine), budget, hear, running.command_line())
    if finished.record is None:
        assert finished.outcome is not None
        running.unfinished(finished.run, finished.outcome, budget, finished.num_rows)
    assert finished.record is not None
    assert finished.table is not None
    if events is not None:
        events.finished(finished)
    else:
        typer.echo(sweep_report.text(finished.record, finished.table))
        for name, path in finished.paths.items():
            typer.echo(f"{name:<9} {path}")
    running.check_errors(finished.errors, finished.num_rows, budget, manner.max_errors)


class _Events:
    """What happens, one JSON object a line, for machines."""

    _EVERY_S = 1.0

    def __init__(self, run: str) -> None:
        self._run, self._last, self._said = run, 0.0, ""
        self._emit("started")

    def _emit(self, event: str, **more: Any) -> None:
        options.emit({"event": event, "run": self._run, "time": round(time.time(), 3), **more})
        sys.stdout.flush()

    def progress(self, seen: Any) -> None:
        """A snapshot of the run; at most one a second, and none that says nothing new."""
        now, doing = time.monotonic(), seen.doing
        if now - self._last < self._EVERY_S and doing == self._said:
            return
        self._last, self._said = now, doing
        stages = {
            name: {"done": s.done, "total": s.total, "seconds_per_row": s.seconds} for name, s in seen.stages.items()
        }
        more = {"cells": list(seen.cells) if seen.cells else None, "errors": seen.errors, "eta_s": seen.eta_s}
        self._emit("progress", doing=doing, stages=stages, **more)

    def finished(self, finished: FinishedSweep) -> None:
        """A line for each cell, the best ones, and where things lie."""
        from harness.report.sweep import cells_of

        assert finished.record is not None
        for row in cells_of(finished.table):
            self._emit("cell", **row)
        for one in finished.record["best"]:
            self._emit("best", **one)
        self._emit("done", errors=finished.errors, paths={name: str(path) for name, path in finished.paths.items()})
