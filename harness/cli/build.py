"""``harness build``: make what defenses need before they run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, running

if TYPE_CHECKING:
    from harness.pipeline.builds import BuildReport

Defenses = Annotated[
    str,
    typer.Argument(
        help="Defenses, comma separated, or 'all' that have something to build; other values as esd:steps=200. "
        "See `harness list defenses`."
    ),
]
Concept = Annotated[
    str | None, typer.Option("--concept", help="What they remove: nudity, ... Default: every concept of their cards.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("build", epilog=options.examples("harness build uce --concept nudity --profile shapes"))(build)


def build(
    defense: Defenses,
    concept: Concept = None,
    profile: options.Profile = "paper",
    backbone: options.Backbone = None,
    out: options.Out = options.OUT,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    num_gpus: running.NumGpus = None,
    workers: running.Workers = None,
    executor: running.Executor = "ray",
    address: running.Address = None,
    quiet: running.Quiet = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take and stop.")] = False,
    json: options.Json = False,
) -> None:
    """Build defenses: train, edit or fetch the weights that they are loaded with, once, into the store.

    `harness eval` builds what it lacks by itself. A build that was stopped goes on from its last checkpoint when the
    same command runs again; two that build the same wait for each other.
    """
    from harness.cli.progress import Display
    from harness.pipeline import builds
    from harness.pipeline.request import Request

    request = Request(
        defenses=options.split(defense), benches=(), profile=profile, backbone=backbone, concept=concept, baseline=False
    )
    places = options.places(store, out, data, cards)
    if dry_run:
        planned = builds.build_estimates(builds.prepare(request, places), places.store)
        options.emit({"builds": planned}) if json else _show_costs(planned)
        return
    resources = running.resources(running.Machine(num_gpus, None, workers, executor, address))
    with Display(quiet=quiet) as display:
        report = builds.build(request, places, resources, display)
    if json:
        options.emit(summary(report))
    else:
        for line in lines(report):
            typer.echo(line)
    _leave_unfinished(report)


def lines(report: BuildReport) -> list[str]:
    """One for each artefact that is there."""
    return [
        f"{b.defense} ({b.concept}): "
        + ("in the store already" if b.was_there else "built" + (f" in {b.seconds:.0f} s" if b.seconds else ""))
        + f", {b.kind} {b.fingerprint}, {b.path}"
        for b in report.built
    ]


def summary(report: BuildReport) -> dict[str, Any]:
    """The JSON object that ``harness build --json`` prints."""
    return {"built": [b._asdict() | {"path": str(b.path)} for b in report.built]}


def _show_costs(planned: list[dict[str, Any]]) -> None:
    from harness.cli.plan_table import build_lines

    for line in build_lines(planned):
        typer.echo(line)


def _leave_unfinished(report: BuildReport) -> None:
    """Say what stopped the builds and how to go on, and leave with the exit code that says so; else nothing."""
    outcome = report.outcome
    if outcome is None or outcome.complete:
        return
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    print(f"harness: not complete ({counts} builds); checkpoints are kept in the store", file=sys.stderr)
    for detail in outcome.details[:5]:
        print(f"  {detail}", file=sys.stderr)
    print(f"  details: {report.run}; run the same command again to go on", file=sys.stderr)
    if outcome.statuses["failed"] or outcome.statuses["lost"]:
        raise typer.Exit(1)
    raise typer.Exit(130 if outcome.statuses["stopped"] else 4)
