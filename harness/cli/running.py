"""What every command that runs stages shares: the machine's options, the run itself, and its exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options

if TYPE_CHECKING:
    from harness.pipeline.evaluate import Budget, Finished
    from harness.pipeline.executor import Outcome, Resources
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
MaxErrors = Annotated[
    str, typer.Option("--max-errors", help="Failed rows allowed: a number, or a share like 5%. Beyond: exit 3.")
]


def _resources(num_gpus: int | None, gpu_memory: float | None, workers: int | None, executor: str) -> Resources:
    from harness.errors import UserError, nearest
    from harness.pipeline.executor import Resources, check

    if executor not in ("ray", "inline"):
        raise UserError(f"--executor {executor!r}{nearest(executor, ['ray', 'inline'])} (there are: ray, inline)")
    num_gpus, gpu_memory = gpus(num_gpus, gpu_memory)
    if workers is None:
        workers = num_gpus or len(os.sched_getaffinity(0))
    found = Resources(
        executor=executor,
        workers=workers,
        num_gpus=num_gpus,
        gpu_memory_gb=gpu_memory,
        address=os.environ.get("RAY_ADDRESS"),
    )
    check(found)
    if executor == "inline" or found.address is None:
        _require_gpus(num_gpus)
    return found


def _require_gpus(number: int) -> None:
    """Refuse more GPUs than this machine has, or any where torch can use none.

    Raises:
        UserError: what was asked for, and what is there.
    """
    from harness.errors import UserError

    if not number:
        return
    there = visible_gpus()
    if there < number:  # what a container does not list, torch may still see
        import torch

        there = torch.cuda.device_count()
    if there < number:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        narrowed = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
        raise UserError(f"--num-gpus {number}: {there} here{narrowed}; without the option all of them are used")
    if metadata.version("torch").endswith("+cpu"):
        raise UserError(f"{number} GPUs to use, but torch is built for the CPU only: install another, or --num-gpus 0")


def gpus(number: int | None, memory_gb: float | None) -> tuple[int, float | None]:
    """How many GPUs to use and the GB of one, asked of the machine where nobody said."""
    number = visible_gpus() if number is None else number
    return number, _gpu_memory() if number and memory_gb is None else memory_gb


def visible_gpus() -> int:
    """GPUs this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([d for d in chosen.split(",") if d.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _gpu_memory() -> float | None:
    """GB of the smallest GPU, as its driver says; None where that cannot be asked."""
    import subprocess

    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
        return min(float(line) for line in answer.split()) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def run(
    request: Request,
    places: Places,
    machine: tuple[int | None, float | None, int | None, str],
    max_errors: str,
    json: bool,
    discard: bool = False,
) -> Finished:
    """Evaluate and print; leaves with the exit code that says how it went unless that is 0.

    Args:
        request: what is asked for.
        places: its folders.
        machine: GPUs, GB of one, workers, executor; None: asked of the machine.
        max_errors: failed rows allowed.
        json: whether one JSON object is printed, instead of tables.
        discard: whether the images are removed once they are scored, also where too many rows failed.
    """
    from harness.cli.progress import Display
    from harness.pipeline.evaluate import Budget, evaluate

    resources, budget = _resources(*machine), Budget.parse(max_errors)
    command = shlex.join(["harness", *sys.argv[1:]])
    with Display(quiet=False) as display:
        finished = evaluate(request, places, resources, budget, display, command)
    if not finished.cells:
        assert finished.outcome is not None
        _unfinished(finished, finished.outcome, budget, discard)
    if json:
        options.emit(summary(finished))
    else:
        from harness.report import terminal

        terminal.show(finished.cells, finished.plan.policies, finished.paths)
    if discard:
        _discard(finished.plan, places)
    if budget.exceeded(finished.errors, finished.rows):
        print(
            f"harness: {finished.errors} of {finished.rows} rows failed, more than --max-errors {max_errors}",
            file=sys.stderr,
        )
        raise typer.Exit(3)
    return finished


def _discard(plan: Plan, places: Places) -> None:
    """Remove the run's own images from the store."""
    from harness.pipeline.results import images_of
    from harness.store.shards import Store

    store = Store.open_existing(places.store)
    with store.lock():
        freed = store.discard_images(images_of(plan, store))
    print(f"images discarded, {freed / 1e6:.1f} MB freed", file=sys.stderr)


def _unfinished(finished: Finished, outcome: Outcome, budget: Budget, discard: bool) -> None:
    """Say what stopped the run and how to go on; never returns."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    print(f"harness: not complete ({counts} shards); what is done is kept in the store", file=sys.stderr)
    for detail in outcome.details[:5]:
        print(f"  {detail}", file=sys.stderr)
    print(f"  details: {finished.run / 'log'}; run the same command again to go on", file=sys.stderr)
    if discard:
        print(
            "  --discard-images: nothing is discarded, since not every image is scored; go on, or remove them with "
            "`harness store prune --images`",
            file=sys.stderr,
        )
    if budget.exceeded(outcome.errors, finished.plan.num_rows):
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
