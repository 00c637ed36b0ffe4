"""``harness eval`` and ``harness plan``: defenses over benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, publish, running
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.request import Places, Request

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
Category = Annotated[
    str | None, typer.Option("--category", help="Only prompts about any of these, comma separated (I2P: sexual, ...).")
]
Baseline = Annotated[bool, typer.Option("--baseline/--no-baseline", help="Evaluate the undefended backbone beside.")]
AcceptChange = Annotated[
    str | None,
    typer.Option(
        "--accept-change",
        help="Take stored results that differ from today's in nothing but these: code, libraries. Stamped on every "
        "number.",
    ),
]
DiscardImages = Annotated[
    bool, typer.Option("--discard-images", help="Remove the images once they are scored; numbers stay.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "eval", epilog=options.examples("harness eval --defense rece,uce --bench ring-a-bell-k77 --profile shapes")
    )(evaluate)
    app.command("plan", epilog=options.examples("harness plan --defense all --bench i2p --profile shapes"))(plan)


def evaluate(
    context: typer.Context,
    defense: Defense,
    bench: Bench,
    profile: options.Profile = "paper",
    regen: Regen = None,
    backbone: options.Backbone = None,
    concept: Concept = None,
    limit: Limit = None,
    ids: Ids = None,
    category: Category = None,
    seed: options.Seed = None,
    baseline: Baseline = True,
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
    discard_images: DiscardImages = False,
    wandb: publish.Wandb = None,
    wandb_project: publish.Project = "harness",
    wandb_group: publish.Group = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; the same as `harness plan`.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Draw a prompt set under a defense, make each image anew with ReSafe, score both, print attack success rates.

    Running the same command again goes on where it stopped; a finished one answers at once.
    """
    from harness.report.wandb import mode_of

    request = _request(context.params)
    places = options.places(store, out, data, cards)
    if dry_run:
        _print_plan(request, places, running.Machine(num_gpus, gpu_memory, address=address), json)
        return
    mode_of(wandb)  # a misspelt word is refused before anything runs
    machine = running.Machine(num_gpus, gpu_memory, workers, executor, address)
    finished = running.run(request, places, machine, running.Manner(max_errors, json, discard_images, quiet, verbose))
    publish.publish_after(finished.run, wandb, wandb_project, wandb_group)


def plan(
    context: typer.Context,
    defense: Defense,
    bench: Bench,
    profile: options.Profile = "paper",
    regen: Regen = None,
    backbone: options.Backbone = None,
    concept: Concept = None,
    limit: Limit = None,
    ids: Ids = None,
    category: Category = None,
    seed: options.Seed = None,
    baseline: Baseline = True,
    accept_change: AcceptChange = None,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    num_gpus: running.NumGpus = None,
    gpu_memory: running.GpuMemory = None,
    power: Annotated[
        bool,
        typer.Option(
            "--power",
            help="Also the smallest difference between two methods that so many rows can show, after Holm over the "
            "planned defenses.",
        ),
    ] = False,
    address: running.Address = None,
    json: options.Json = False,
) -> None:
    """Say what an eval would do: stages, shards, what is there already, expected hours and disk. Loads no model.

    Where weights or prompts are not here yet, the plan is made all the same, and what is missing stands beside it.

    With --power, per benchmark: how many one-way flips are significant, and the true difference found in 4 of 5 runs
    when no row flips the other way, or 5% of the rows do.
    """
    request = _request(context.params)
    machine = running.Machine(num_gpus, gpu_memory, address=address)
    _print_plan(request, options.places(store, options.OUT, data, cards), machine, json, power)


def _request(chosen: Mapping[str, Any]) -> Request:
    """The request in a command's parameters; its other parameters are left aside."""
    from harness.pipeline.request import Request

    return Request(
        defenses=options.split(chosen["defense"]),
        benches=options.split(chosen["bench"]),
        ids=_some("--ids", chosen["ids"]) or (),
        categories=_some("--category", chosen["category"]) or (),
        accept_change=_some("--accept-change", chosen["accept_change"]) or (),
        regens=_some("--regen", chosen["regen"]),
        **{name: chosen[name] for name in ("profile", "backbone", "concept", "limit", "seed", "baseline")},
    )


def _some(option: str, text: str | None) -> tuple[str, ...] | None:
    """What an option names; None without the option.

    Raises:
        UserError: it names nothing, as an empty shell variable does; the run would be over every row.
    """
    if text is None:
        return None
    names = options.split(text)
    if not names:
        raise UserError(f"{option} {text!r} names nothing; leave {option} out, or say what is wanted")
    return names


def _print_plan(request: Request, places: Places, machine: running.Machine, json: bool, power: bool = False) -> None:
    from harness.cli.plan_table import show, show_power
    from harness.pipeline.estimate import comparisons, estimate
    from harness.pipeline.evaluate import overview, warn_left_out

    made, missing, unread = overview(request, places)
    warn_left_out(made)
    gpus, memory = running.gpus(machine)
    summary = estimate(made, places.store, gpus, memory) | {"missing": missing, "unread": unread}
    if power:
        summary["power"] = comparisons(made)
    if json:
        options.emit(summary)
        return
    show(summary)
    if power:
        show_power(summary["power"])
