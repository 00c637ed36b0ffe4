"""``harness eval``, ``harness plan`` and ``harness score``: the run, before and after."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options

if TYPE_CHECKING:
    from harness.evaluate import Finished, Places
    from harness.flow import Outcome, Resources
    from harness.plan import Request

Defense = Annotated[
    str, typer.Option("--defense", "-d", help="Defenses, comma separated, or 'all'. See `harness list defenses`.")
]
Bench = Annotated[
    str, typer.Option("--bench", "-b", help="Benchmarks, comma separated, or 'all'. See `harness list datasets`.")
]
Regen = Annotated[
    str | None,
    typer.Option(
        "--regen",
        "-r",
        help="Regenerators beside each defense, comma separated, or 'none'; other values as resafe:alpha=0.5:tokens=8. "
        "Default: the profile's. See `harness list regenerators`.",
    ),
]
Backbone = Annotated[str | None, typer.Option("--backbone", help="Instead of the profile's.")]
Concept = Annotated[
    str | None,
    typer.Option("--concept", help="What defense and regenerator remove, when not the benchmark's own concept."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Only the first N rows of each benchmark; stamped in every number.")
]
Ids = Annotated[
    str | None, typer.Option("--ids", help="Only these rows, comma separated: ring-a-bell-k77/00017 or 17.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="This seed for every row, instead of the benchmark's own.")
]
Baseline = Annotated[bool, typer.Option("--baseline/--no-baseline", help="Evaluate the undefended backbone beside.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Actors at work at once. Default: GPUs, else cores.")
]
NumGpus = Annotated[int | None, typer.Option("--num-gpus", min=0, help="GPUs to use. Default: all that are visible.")]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", min=1, help="GB of one GPU, which says what fits side by side. Default: asked of it."),
]
DiscardImages = Annotated[
    bool, typer.Option("--discard-images", help="Remove the pictures once they are scored; numbers stay.")
]
Executor = Annotated[
    str, typer.Option("--executor", help="ray, or inline: the same stages in this process, for debugging.")
]
MaxErrors = Annotated[
    str, typer.Option("--max-errors", help="Failed rows allowed: a number, or a share like 5%. Beyond: exit 3.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("eval", epilog="Example: harness eval --defense rece,uce --bench ring-a-bell-k77 --profile shapes")(
        evaluate
    )
    app.command("plan", epilog="Example: harness plan --defense all --bench i2p")(plan)
    app.command("score", epilog="Example: harness score runs/none_i2p_shapes_1a2b3c4d --scorer nudenet")(score)


def evaluate(
    context: typer.Context,
    defense: Defense,
    bench: Bench,
    profile: options.Profile = "paper",
    regen: Regen = None,
    backbone: Backbone = None,
    concept: Concept = None,
    limit: Limit = None,
    ids: Ids = None,
    seed: Seed = None,
    baseline: Baseline = True,
    out: options.Out = options.OUT,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    num_gpus: NumGpus = None,
    gpu_memory: GpuMemory = None,
    workers: Workers = None,
    executor: Executor = "ray",
    max_errors: MaxErrors = "5%",
    discard_images: DiscardImages = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; the same as `harness plan`.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Draw a prompt set under a defense, make each picture anew with ReSafe, score both, print attack success rates.

    Running the same command again goes on where it stopped; a finished one answers at once.
    """
    request = _request(context.params)
    places = options.places(store, out, data, cards)
    if dry_run:
        _print_plan(request, places, json)
        return
    _run(request, places, (num_gpus, gpu_memory, workers, executor), max_errors, json)
    if discard_images:
        _discard(request, places)


def plan(
    context: typer.Context,
    defense: Defense,
    bench: Bench,
    profile: options.Profile = "paper",
    regen: Regen = None,
    backbone: Backbone = None,
    concept: Concept = None,
    limit: Limit = None,
    ids: Ids = None,
    seed: Seed = None,
    baseline: Baseline = True,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Say what an eval would do: stages, shards, what is there already, expected hours and disk. Loads no model."""
    request = _request(context.params)
    _print_plan(request, options.places(store, options.OUT, data, cards), json)


def score(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    scorer: Annotated[
        str, typer.Option("--scorer", help="Scorers to add, comma separated. See `harness list scorers`.")
    ],
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    executor: Executor = "ray",
    max_errors: MaxErrors = "5%",
    json: options.Json = False,
) -> None:
    """Add a scorer to a run's stored images; nothing is drawn again."""
    import dataclasses

    from harness import scorers
    from harness.cli.report import read_record
    from harness.evaluate import request_of

    wanted = options.split(scorer)
    for stem in wanted:
        scorers.columns(stem)  # an unknown one is refused before anything is written
    request = request_of(read_record(run))
    request = dataclasses.replace(request, extra_scorers=tuple(dict.fromkeys((*request.extra_scorers, *wanted))))
    places = options.places(store, run.resolve().parent, data, cards)
    _run(request, places, (0, None, None, executor), max_errors, json)


def _request(chosen: Mapping[str, Any]) -> Request:
    """The request in a command's parameters; its other parameters are left aside."""
    from harness.plan import Request

    return Request(
        defenses=options.split(chosen["defense"]),
        benches=options.split(chosen["bench"]),
        ids=options.split(chosen["ids"] or ""),
        regens=None if chosen["regen"] is None else options.split(chosen["regen"]),
        **{name: chosen[name] for name in ("profile", "backbone", "concept", "limit", "seed", "baseline")},
    )


def _resources(num_gpus: int | None, gpu_memory: float | None, workers: int | None, executor: str) -> Resources:
    from harness.errors import UserError, nearest
    from harness.flow import Resources, check

    if executor not in ("ray", "inline"):
        raise UserError(f"--executor {executor!r}{nearest(executor, ['ray', 'inline'])} (there are: ray, inline)")
    if num_gpus is None:
        num_gpus = _visible_gpus()
    if num_gpus and gpu_memory is None:
        gpu_memory = _gpu_memory()
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
    return found


def _visible_gpus() -> int:
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


def _run(
    request: Request,
    places: Places,
    machine: tuple[int | None, float | None, int | None, str],
    max_errors: str,
    json: bool,
) -> None:
    """Evaluate, print, and leave with the exit code that says how it went."""
    from harness.cli.progress import Display
    from harness.evaluate import Budget, evaluate

    resources, budget = _resources(*machine), Budget.parse(max_errors)
    command = shlex.join(["harness", *sys.argv[1:]])
    with Display(quiet=False) as display:
        finished = evaluate(request, places, resources, budget, display, command)
    if not finished.cells:
        assert finished.outcome is not None
        _unfinished(finished, finished.outcome, budget)
    if json:
        options.emit(summary(finished))
    else:
        from harness.report import terminal

        terminal.show(finished.cells, finished.plan.policies, finished.paths)
    if budget.exceeded(finished.errors, finished.rows):
        print(
            f"harness: {finished.errors} of {finished.rows} rows failed, more than --max-errors {max_errors}",
            file=sys.stderr,
        )
        raise typer.Exit(3)


def _discard(request: Request, places: Places) -> None:
    """Remove the run's own pictures from the store."""
    from harness.evaluate import images_of, prepare
    from harness.store import Store

    store = Store.open_existing(places.store)
    with store.lock():
        freed = store.discard_images(images_of(prepare(request, places), store))
    print(f"pictures discarded, {freed / 1e6:.1f} MB freed", file=sys.stderr)


def _unfinished(finished: Finished, outcome: Outcome, budget: Any) -> None:
    """Say what stopped the run and how to go on; never returns."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    print(f"harness: not complete ({counts} shards); what is done is kept in the store", file=sys.stderr)
    for detail in outcome.details[:5]:
        print(f"  {detail}", file=sys.stderr)
    print(f"  details: {finished.run / 'log'}; run the same command again to go on", file=sys.stderr)
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


def _print_plan(request: Request, places: Places, json: bool) -> None:
    from harness.cli.outlook import outlook, show
    from harness.evaluate import prepare

    found = outlook(prepare(request, places), places.store)
    if json:
        options.emit(found)
    else:
        show(found)
