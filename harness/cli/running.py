"""What every command that runs stages shares: the machine's options, the run itself, and its exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from harness.cli import options

if TYPE_CHECKING:
    from harness.pipeline.evaluate import Budget, Finished
    from harness.pipeline.executor import Resources
    from harness.pipeline.outcome import Outcome
    from harness.pipeline.plan import Plan
    from harness.pipeline.request import Places, Request

Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Actors at work at once. Default: GPUs, else cores.")
]
NumGpus = Annotated[int | None, typer.Option("--num-gpus", min=0, help="GPUs to use. Default: all that are visible.")]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", min=1, help="GB of one GPU, which says what fits side by side. Default: asked of it."),
]
Executor = Annotated[
    str, typer.Option("--executor", help="ray, or inline: the same stages in this process, for debugging.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="A running Ray cluster, HOST:PORT or auto; its GPUs count. Default: Ray is started on this machine.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Progress of every stage, line by line.")]
MaxErrors = Annotated[
    str, typer.Option("--max-errors", help="Failed rows allowed: a number, or a share like 5%. Beyond: exit 3.")
]


class Machine(NamedTuple):
    """With what to compute, as it was asked for; None: asked of the machine or the cluster."""

    num_gpus: int | None = None
    gpu_memory: float | None = None
    workers: int | None = None
    executor: str = "ray"
    address: str | None = None


class Manner(NamedTuple):
    """How a run is held and shown."""

    max_errors: str
    json: bool  # one JSON object is printed, instead of tables
    discard: bool = False  # the images are removed once they are scored, also where too many rows failed
    quiet: bool = False
    verbose: bool = False


def resources(machine: Machine) -> Resources:
    """With what a run computes: what was said, the rest asked of the machine or the cluster.

    Raises:
        UserError: what is asked for is not there.
    """
    from harness.errors import UserError, nearest
    from harness.pipeline import hardware
    from harness.pipeline.executor import Resources, check

    num_gpus, gpu_memory, workers, executor, address = machine
    if executor not in ("ray", "inline"):
        raise UserError(f"--executor {executor!r}{nearest(executor, ['ray', 'inline'])} (there are: ray, inline)")
    address = None if executor == "inline" or address in ("", "local") else address
    there = hardware.ask(address)
    if num_gpus is None:
        num_gpus = there.gpus
    chosen = Resources(
        executor=executor,
        workers=workers or num_gpus or there.cores,
        num_gpus=num_gpus,
        gpu_memory_gb=there.gpu_memory_gb if num_gpus and gpu_memory is None else gpu_memory,
        address=address,
    )
    check(chosen)
    if address is None:
        hardware.require_gpus(num_gpus)
    elif num_gpus > there.gpus:
        raise UserError(f"--num-gpus {num_gpus}: the cluster at {address} has {there.gpus} now")
    return chosen


def gpus(machine: Machine) -> tuple[int, float | None]:
    """How many GPUs to plan for and the GB of one; any number may be asked for, also one that is not here."""
    from harness.pipeline import hardware

    if machine.num_gpus is not None and (machine.gpu_memory is not None or not machine.num_gpus):
        return machine.num_gpus, machine.gpu_memory
    there = hardware.ask(machine.address)
    number = there.gpus if machine.num_gpus is None else machine.num_gpus
    return number, there.gpu_memory_gb if number and machine.gpu_memory is None else machine.gpu_memory


def run(
    request: Request,
    places: Places,
    machine: Machine,
    manner: Manner,
    then: Callable[[Finished], None] = lambda finished: None,
) -> Finished:
    """Evaluate and print; leaves with the exit code that says how it went unless that is 0.

    Args:
        request: what is asked for.
        places: its folders.
        machine: with what to compute.
        manner: how.
        then: called with a run that has its numbers, also where too many of its rows failed.
    """
    from harness.cli.progress import Display
    from harness.pipeline.evaluate import Budget, evaluate

    budget = Budget.parse(manner.max_errors)
    command = command_line()
    with Display(quiet=manner.quiet, verbose=manner.verbose) as display:
        finished = evaluate(request, places, resources(machine), budget, display, command)
    if not finished.cells:
        assert finished.outcome is not None
        unfinished(finished.run, finished.outcome, budget, finished.plan.num_rows, manner.discard)
    if manner.json:
        options.emit(summary(finished))
    else:
        from harness.report import terminal

        terminal.show(finished.cells, finished.plan.policies, finished.paths)
    then(finished)
    if manner.discard:
        _discard(finished.plan, places)
    check_errors(finished.errors, finished.rows, budget, manner.max_errors)
    return finished


def command_line() -> str:
    """The command that this process was started with, as a shell takes it."""
    return " ".join(["harness", *map(_quoted, sys.argv[1:])])


def _quoted(word: str) -> str:
    """A word of a command as a shell takes it; bytes that are no UTF-8, as in a file's name, are escaped."""
    try:
        word.encode()
    except UnicodeEncodeError:
        escaped = os.fsencode(word).decode("utf-8", "backslashreplace") if "\\" not in word and "'" not in word else ""
        return f"$'{escaped}'" if escaped else shlex.quote(word.encode(errors="replace").decode())
    return shlex.quote(word)


def check_errors(errors: int, rows: int, budget: Budget, said: str) -> None:
    """Leave with exit code 3 where more rows failed than ``said`` allows."""
    if budget.exceeded(errors, rows):
        print(f"harness: {errors} of {rows} rows failed, more than --max-errors {said}", file=sys.stderr)
        raise typer.Exit(3)


def _discard(plan: Plan, places: Places) -> None:
    """Remove the run's own images from the store."""
    from harness.pipeline.results import images_of
    from harness.store.shards import Store

    store = Store.open_existing(places.store)
    with store.lock():
        freed = store.discard_images(images_of(plan, store))
    print(f"images discarded, {freed / 1e6:.1f} MB freed", file=sys.stderr)


def unfinished(run: Path, outcome: Outcome, budget: Budget, rows: int, discard: bool = False) -> NoReturn:
    """Say what stopped the run and how to go on, and leave with the exit code that says so.

    Args:
        run: its folder.
        outcome: how its tickets ended.
        budget: how many rows may fail.
        rows: images in all.
        discard: whether images were to be discarded.
    """
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    print(f"harness: not complete ({counts} shards); what is done is kept in the store", file=sys.stderr)
    for detail in outcome.details[:5]:
        print(f"  {detail}", file=sys.stderr)
    print(f"  details: {run / 'log'}; run the same command again to go on", file=sys.stderr)
    if discard:
        print(
            "  --discard-images: nothing is discarded, since not every image is scored; go on, or remove them with "
            "`harness store prune --images`",
            file=sys.stderr,
        )
    if budget.exceeded(outcome.errors, rows):
        raise typer.Exit(3)
    if outcome.statuses["failed"] or outcome.statuses["lost"]:
        raise typer.Exit(1)
    raise typer.Exit(130 if outcome.statuses["stopped"] else 4)


def summary(finished: Finished) -> dict[str, Any]:
    """The JSON object that ``harness eval --json`` ends with."""
    return {
        "run": finished.plan.name,
        "profile": finished.plan.profile.name,
        "cells": [c.to_json() for c in finished.cells],
        "paths": {name: str(path) for name, path in finished.paths.items()},
    }
