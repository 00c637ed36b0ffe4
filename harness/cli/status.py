"""``harness status`` and ``harness stop``: runs that are at work, whoever started them, wherever they run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options

if TYPE_CHECKING:
    from harness.pipeline.run_status import RunStatus

_TAIL = 5  # lines of a log that are shown where a run did not end well
_LATEST = 20  # runs that are listed
_LOOK_EVERY_S = 0.2

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its name, or how its name begins.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("status", epilog=options.examples("harness status sweep_rece"))(status)
    app.command("stop", epilog=options.examples("harness stop sweep_rece"))(stop)


def status(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's folder, its name, or how its name begins. Default: all, a line each."
        ),
    ] = None,
    out: options.Out = options.OUT,
    json: options.Json = False,
) -> None:
    """Say how far runs are, who holds them and what failed; from files alone, of `eval`, `sweep`, `regen` and `score`.

    States: starting, working, stopping; done, incomplete (run it again), stopped, failed; dead: its process has ended
    without a word, or has not been heard of from another host for 90 s.
    """
    from harness.pipeline import run_status

    folders = [run_status.resolve(run, out)] if run is not None else run_status.runs(out)[-_LATEST:]
    known = [(folder, one) for folder in folders if (one := run_status.read(folder)) is not None]
    if json:
        told = [
            {**one.to_json(), "folder": str(folder), "silent_s": run_status.silence_s(folder)} for folder, one in known
        ]
        options.emit(told[0] if run is not None and told else {"runs": told})
        return
    if not known:
        typer.echo(f"no run in {out}" if run is None else f"{run}: its status cannot be read")
    for folder, one in known:
        typer.echo("\n".join(whole(folder, one) if run is not None else [brief(one)]))


def stop(
    run: Run,
    out: options.Out = options.OUT,
    now: Annotated[
        bool, typer.Option("--now", help="SIGTERM: shards at work have a grace period (25 s), then it leaves.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """End a run in order: shards at work finish their stage and are published, nothing else begins.

    Repeating the run's command goes on from there. Exit code 4 where it is still at work after --wait.
    """
    from harness.pipeline import run_status

    folder = run_status.resolve(run, out)
    before = run_status.stop(folder, now)
    if before is None or before.state not in run_status.AT_WORK:
        typer.echo(f"{folder.name} is not at work: {before.state if before else 'unknown'}")
        return
    after, deadline = before, time.monotonic() + wait
    while after.state in run_status.AT_WORK and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
        after = run_status.read(folder) or after
    if after.state in run_status.AT_WORK:
        typer.echo(f"{folder.name}: still at work; it ends once its shards have finished their stage ({after.holder})")
        raise typer.Exit(4)
    if after.state == run_status.DEAD:
        after = run_status.mark_stopped(folder, after)
    typer.echo(f"{folder.name}: {after.state}; the same command goes on: {after.command}")


def brief(one: RunStatus) -> str:
    """A run in one line."""
    done, total = one.rows
    share = f"{100 * done / total:.0f}%" if total else ""
    parts = [f"{one.state:<10} {one.run}", share, _cells(one), _eta(one), _failures(one)]
    return "  ".join(part for part in parts if part)


def whole(folder: Path, one: RunStatus) -> list[str]:
    """All that is known of a run."""
    from harness.pipeline import run_status

    silent = run_status.silence_s(folder)
    lines = [f"{one.run}: {one.state}" + (f", {one.doing}" if one.doing else "")]
    lines.append(f"holder    {one.holder}, since {_clock(one.begun)}; last heard of {silent:.0f} s ago")
    if one.state == run_status.DEAD:
        lines.append(f"          it ended without a word; the same command goes on: {one.command}")
    for name, stage in one.stages.items():
        rate = f"  {stage.seconds:.2f} s/row" if stage.seconds else ""
        lines.append(f"  {name:<28} {stage.done}/{stage.total} rows{rate}")
    done, total = one.rows
    if total:
        lines.append(
            "progress  " + "; ".join(filter(None, (f"{done}/{total} rows of all stages", _cells(one), _eta(one))))
        )
    lines.append(f"failures  {one.errors} rows" + "".join(f"\n          {detail}" for detail in one.details))
    if one.state in (run_status.DEAD, run_status.FAILED):
        lines += [f"log       {line}" for line in _tail(one.log)]
    elif one.log:
        lines.append(f"log       {one.log}")
    return lines


def _cells(one: RunStatus) -> str:
    return f"{one.cells[0]} of {one.cells[1]} cells done" if one.cells else ""


def _eta(one: RunStatus) -> str:
    from harness.cli.progress import eta

    return eta(one)


def _failures(one: RunStatus) -> str:
    return f"{one.errors} rows failed" if one.errors else ""


def _tail(log: str | None) -> list[str]:
    """The last lines that a detached run wrote."""
    try:
        return Path(log).read_text(errors="replace").splitlines()[-_TAIL:] if log else []
    except OSError:
        return []


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
