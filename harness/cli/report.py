"""``harness report``: a table of the paper from all runs of a folder; and reading a run's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options
from harness.errors import UserError

FORMATS = ("terminal", "md", "csv", "json")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("report", epilog="Example: harness report table1 --profile shapes --format md")(report)


def report(
    name: Annotated[str, typer.Argument(help="Table; see `harness list reports`.")],
    profile: options.Profile = "paper",
    out: options.Out = options.OUT,
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.")] = "terminal",
    to: Annotated[Path | None, typer.Option("--to", help="Write to this file instead of standard output.")] = None,
    cards: options.Cards = None,
    as_json: options.Json = False,
) -> None:
    """Print a table in the paper's layout from every run under --out: k/n, interval, and the paper's value beside.

    Cells that no run gives say so, and how to get them.
    """
    from harness.cards import load, roots
    from harness.errors import nearest
    from harness.report import table

    if form not in FORMATS:
        raise UserError(f"--format {form!r}{nearest(form, FORMATS)} (there are: {', '.join(FORMATS)})")
    card = load("report", name, roots(cards))
    load("profile", profile, roots(cards))
    text = table.render(table.assemble(card, out, profile), "json" if as_json else form)
    if to is None:
        typer.echo(text)
    else:
        from harness.store import write_atomically

        write_atomically(to, (text + "\n").encode())
        typer.echo(f"{to}", err=True)


def read_record(run: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        UserError: no such run, with those that are there.
    """
    path = run / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        there = sorted(p.parent.name for p in run.parent.glob("*/run.json")) if run.parent.is_dir() else []
        raise UserError(f"no finished run at {run} (in {run.parent}: {', '.join(there) or 'none'})") from None
    except ValueError as error:
        raise UserError(f"{path} is not readable: {error}") from None
    return found
