"""``harness baseline``: whether runs differ from a committed baseline by more than chance. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.errors import UserError

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of complete runs, or names under --out.")]
Folder = Annotated[Path, typer.Option("--baseline", help="Folder of the baseline, to be committed.")]
BASELINE = Path("benchmarks/baseline")
REGRESSED = 1  # exit code


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    baseline = typer.Typer(
        help="A regression gate: today's rows beside those of a committed baseline.", no_args_is_help=True
    )
    baseline.command("check", epilog=options.examples("harness baseline check runs/*"))(check)
    baseline.command("update", epilog=options.examples('harness baseline update runs/* --reason "RECE 3 epochs"'))(
        update
    )
    app.add_typer(baseline, name="baseline")


def check(runs: Runs, baseline: Folder = BASELINE, out: options.Out = options.OUT, json: options.Json = False) -> None:
    """Pair today's rows with the baseline's; leave with exit code 1 and the cell's name where one changed.

    Verdicts and degenerate images are tested by the sign of each cluster's change, numbers by the signs of their
    differences, Holm over all; a method is also tested over all benchmarks together. A row without an image that had
    one, and a cell or a column that is gone, fail without a test: chance makes none of them.
    """
    from harness.metrics.regression import compare_snapshots, faults, new_cells
    from harness.report import baseline as stored

    before, history = stored.load(baseline)
    after, _ = stored.of_runs(_folders(runs, out))
    compared, new = compare_snapshots(before, after), new_cells(before, after)
    if json:
        options.emit(stored.to_json(compared, new))
    else:
        typer.echo(stored.text(compared, new, history))
    if faults(compared):
        raise typer.Exit(REGRESSED)


def update(
    runs: Runs,
    reason: Annotated[str, typer.Option("--reason", help="Why today's numbers are the right ones; kept beside them.")],
    baseline: Folder = BASELINE,
    out: options.Out = options.OUT,
) -> None:
    """Take today's rows as the baseline; cells that the runs do not have stay as they were.

    The baseline holds verdicts and numbers, no prompt, caption, image or path. Reason, date, commands and what changed
    are kept in history.json.
    """
    from datetime import UTC, datetime

    from harness import __version__
    from harness.metrics.regression import compare_snapshots, faults
    from harness.report import baseline as stored

    if not reason.strip():
        raise UserError("--reason is empty: say why today's numbers are the right ones")
    after, commands = stored.of_runs(_folders(runs, out))
    changed: list[str] = []
    history: list[stored.Update] = []
    if (baseline / stored.ROWS).exists():
        before, history = stored.load(baseline)
        changed = [str(one) for one in faults(compare_snapshots(before, after)) if one.detail != "not in today's runs"]
        after = stored.merged(before, after)
    today = datetime.now(UTC).date().isoformat()
    history.append(stored.Update(today, reason.strip(), __version__, commands, changed))
    stored.save(baseline, after, history)
    typer.echo(f"{baseline}: {stored.count_rows(after)} judged rows; {len(changed)} comparisons changed")
    for line in changed:
        typer.echo(f"  {line}")


def _folders(runs: list[Path], out: Path) -> list[Path]:
    return [run if run.is_dir() else out / run for run in runs]
