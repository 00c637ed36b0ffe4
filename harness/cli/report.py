"""``harness report``: a table of the paper from all runs of a folder, or one run's ASR against threshold."""

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
    name: Annotated[str, typer.Argument(help="Table, see `harness list reports`; with --curve a run's folder.")],
    profile: options.Profile = "paper",
    out: options.Out = options.OUT,
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.")] = "terminal",
    to: Annotated[
        Path | None, typer.Option("--to", help="Write to this file instead of standard output; with --curve, folder.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="ASR of a run against the threshold: CSV, JSON, PNG. Loads no model.")
    ] = False,
    policy: Annotated[
        str | None, typer.Option("--policy", help="With --curve: whose threshold moves. Default: the run's main one.")
    ] = None,
    cards: options.Cards = None,
    as_json: options.Json = False,
) -> None:
    """Print a table in the paper's layout from every run under --out: k/n, interval, and the paper's value beside.

    Cells that no run gives say so, and how to get them. With --curve, ASR of one run at every threshold, from its
    stored scores, with the point of each published policy over the same scorer.
    """
    if curve:
        _curve(Path(name) if Path(name).is_dir() else out / name, policy, to, cards, as_json)
        return
    if policy is not None:
        raise UserError("--policy goes with --curve; a table's card names its policies")
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


def _curve(run: Path, policy: str | None, to: Path | None, cards: Path | None, as_json: bool) -> None:
    """Write a run's curves beside its report, or to a folder."""
    from harness.cards import PolicyCard, load, load_all, roots
    from harness.report import curve
    from harness.store import read

    record, where = read_record(run), roots(cards)
    chosen = {c: load("policy", policy or used[0]["name"], where) for c, used in record["policies"].items()}
    known = [card for card in load_all("policy", where) if isinstance(card, PolicyCard)]
    found = curve.curves(read(run / "scores.parquet"), chosen, known)
    names = "_".join(dict.fromkeys(card.name for card in chosen.values()))
    paths = curve.write(to or run, f"curve_{names}", found)
    if as_json:
        options.emit(
            {"run": run.name, "policies": {c: p.name for c, p in chosen.items()}, "paths": list(map(str, paths))}
        )
        return
    for path in paths:
        typer.echo(str(path))


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
