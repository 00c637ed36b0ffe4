"""``harness publish``: a finished run on Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options

Wandb = Annotated[
    str | None,
    typer.Option(
        "--wandb", help="online, offline or disabled. Default: online where WANDB_API_KEY is set, else disabled."
    ),
]
Project = Annotated[str, typer.Option("--wandb-project", help="Project on W&B.")]
Group = Annotated[
    str | None, typer.Option("--wandb-group", help="Group on W&B, such as a sweep's name. Default: the run's name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("publish", epilog=options.examples("harness publish runs/rece_i2p_paper_0a1b2c3d --wandb offline"))(
        publish
    )


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    wandb: Wandb = "online",
    project: Project = "harness",
    group: Group = None,
    json: options.Json = False,
) -> None:
    """Publish a finished run on Weights & Biases: numbers, settings, raw scores; never an image, prompt or caption.

    One W&B run per condition. Publishing again updates what is there. An offline run lies in the run's folder and is
    sent by `wandb sync`.
    """
    from harness.report.wandb import Destination, mode_of
    from harness.report.wandb import publish as send

    ids = send(run, Destination(mode_of(wandb), project, group))
    if json:
        options.emit({"run": run.name, "wandb_ids": ids})
    else:
        typer.echo(f"{run.name}: {len(ids)} W&B runs in project {project} ({', '.join(ids) or 'disabled'})")


def publish_after(run: Path, wandb: str | None, project: str, group: str | None) -> None:
    """Publish a run that has just finished; what goes wrong is a warning, never a failed run."""
    from harness.errors import UserError
    from harness.report.wandb import Destination, mode_of

    destination = Destination(mode_of(wandb), project, group)
    if destination.mode == "disabled":
        return
    from harness.report.wandb import publish as send

    try:
        send(run, destination)
    except UserError as error:
        print(f"harness: warning: not published ({error}); later: harness publish {run}", file=sys.stderr)
