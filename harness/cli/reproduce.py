"""``harness reproduce``: compute what a table of the paper lacks, then print it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.report import ReportCard
from harness.cli import options, running
from harness.cli.report import check_format, print_text
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.reproduce import Evaluation, Missing, Question
    from harness.pipeline.request import Places
    from harness.report.run_cells import Run

SIGNALLED = 130  # the exit code after Ctrl-C


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("reproduce", epilog=options.examples("harness reproduce table5 --profile shapes --limit 8"))(reproduce)


class Failure(NamedTuple):
    """An evaluation that gave no numbers, or bad ones."""

    what: str
    why: str
    exit_code: int


def reproduce(
    name: Annotated[str, typer.Argument(help="Table or figure; see `harness list reports`.")],
    profile: options.Profile = "paper",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N rows of each benchmark; stamped everywhere.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what it costs, and stop.")] = False,
    store: options.StoreDir = options.STORE,
    out: options.Out = options.OUT,
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
    form: Annotated[
        str | None,
        typer.Option("--format", help="As of `harness report`. Default: what --to ends with, else terminal."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Write the table to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Run every evaluation that the table lacks numbers of, then print the table. Run it again to go on.

    A defense that has no card for a benchmark's concept, or whose weights are not here, is listed with the reason, and
    the rest goes on. What a judge or people have to answer is listed with the command that asks them. Exit code 1: an
    evaluation failed; 3: too many rows did.
    """
    from harness.pipeline import reproduce as lacking
    from harness.report import table
    from harness.report.render import render
    from harness.report.run_cells import read_runs

    form = check_format(form, to, json)
    card = load_card(ReportCard, name, card_roots(cards))
    load_card(ProfileCard, profile, card_roots(cards))
    places = options.places(store, out, data, cards)
    machine = running.Machine(num_gpus, gpu_memory, workers, executor, address)
    manner = running.Manner(max_errors, json, quiet=quiet, verbose=verbose)
    runs = read_runs(out)
    missing = lacking.missing(card, profile, table.fill(card, runs, profile), runs, places, limit)
    if dry_run:
        _print_plan(missing, places, machine, json)
        return
    failures = _compute(missing.evaluations, places, machine, manner)
    print_text(render(table.assemble(card, out, profile), form), to)
    for line in [*_left_out(missing), *_to_ask(missing.questions, places, profile)]:
        typer.echo(line, err=True)
    for failure in failures:
        typer.echo(f"failed: {failure.what}: {failure.why}", err=True)
    if failures:
        raise typer.Exit(max(failure.exit_code for failure in failures))


def _compute(
    evaluations: Sequence[Evaluation], places: Places, machine: running.Machine, manner: running.Manner
) -> list[Failure]:
    """Run one evaluation after another; of several defenses, one by one once they fail together."""
    failures: list[Failure] = []
    for number, evaluation in enumerate(evaluations, 1):
        what = _name(evaluation)
        typer.echo(f"harness: {number} of {len(evaluations)}: {what}", err=True)
        failure = _run(evaluation, places, machine, manner)
        if failure is None:
            continue
        alone = evaluation.by_defense()
        if failure.exit_code == SIGNALLED:
            raise typer.Exit(SIGNALLED)
        if failure.exit_code == 3 or len(alone) == 1:
            failures.append(failure)
            continue
        typer.echo(f"harness: {failure.why}; its defenses one by one, from what is in the store", err=True)
        failures += [f for one in alone if (f := _run(one, places, machine, manner)) is not None]
    return failures


def _run(evaluation: Evaluation, places: Places, machine: running.Machine, manner: running.Manner) -> Failure | None:
    """Evaluate; None when it gave numbers as it should."""
    from harness.cli.progress import Display
    from harness.pipeline.evaluate import Budget, evaluate

    budget = Budget.parse(manner.max_errors)
    command = evaluation.command(places) or running.command_line()
    try:
        with Display(quiet=manner.quiet, verbose=manner.verbose) as display:
            resources = running.resources(machine)
            finished = evaluate(evaluation.request, places, resources, budget, display, command)
    except UserError as error:
        return Failure(_name(evaluation), str(error), 1)
    if not finished.cells:
        assert finished.outcome is not None
        statuses = finished.outcome.statuses
        counts = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
        detail = "; ".join(finished.outcome.details[:2])
        code = SIGNALLED if statuses["stopped"] else 1
        return Failure(_name(evaluation), f"not complete ({counts} shards){': ' if detail else ''}{detail}", code)
    if budget.exceeded(finished.errors, finished.rows):
        return Failure(_name(evaluation), f"{finished.errors} of {finished.rows} rows failed", 3)
    return None


def _name(evaluation: Evaluation) -> str:
    asked = evaluation.request
    on = f" on {asked.backbone}" if asked.backbone else ""
    rows = f", {asked.limit} rows each" if asked.limit else ""
    regens = ", ".join(asked.regens or ())
    return f"{', '.join(asked.defenses)}{on} over {', '.join(asked.benches)} (regenerated: {regens}){rows}"


def _left_out(missing: Missing) -> list[str]:
    return [f"not available ({one.cells} cells): {one.what}: {one.why}" for one in missing.unavailable]


def _to_ask(questions: Sequence[Question], places: Places, profile: str) -> list[str]:
    """The commands that have judges and people answer, over the newest run that has the images."""
    from harness.pipeline.reproduce import how_to_ask
    from harness.report.run_cells import read_runs

    captioner, runs = load_card(ProfileCard, profile, places.roots).captioner, read_runs(places.out)
    lines = []
    for question in questions:
        having = [run for run in runs if _has_images(run, question, profile)]
        newest = max(having, key=lambda run: run.finished, default=None)
        folder = str(places.out / newest.name) if newest else "RUN"
        lines.append(f"to be answered: {how_to_ask(question, folder, captioner)}")
    return lines


def _has_images(run: Run, question: Question, profile: str) -> bool:
    drawn = {f"{c.defense}/{c.variant}" for c in run.cells if c.bench == question.bench and c.profile == profile}
    return bool(drawn & set(question.methods))


def _print_plan(missing: Missing, places: Places, machine: running.Machine, json: bool) -> None:
    """What would run, evaluation by evaluation, and in all."""
    plans = [_plan(evaluation, places, machine) for evaluation in missing.evaluations]
    if json:
        options.emit({
            "evaluations": plans,
            "unavailable": [one._asdict() for one in missing.unavailable],
            "questions": [one._asdict() for one in missing.questions],
        })  # fmt: skip
        return
    for plan in plans:
        typer.echo(f"{plan['what']}: {plan['cells']} cells")
        if "refused" in plan:
            typer.echo(f"  cannot run: {plan['refused']}")
            continue
        typer.echo(f"  {plan['command'] or 'no single command: harness reproduce runs it'}")
        typer.echo(
            f"  {plan['rows']} rows, {plan['images_to_draw']} images to draw, about {plan['hours']} hours of drawing "
            f"and {plan['build_hours']} of building, {plan['disk_mb']} MB of disk"
        )
    able = [plan for plan in plans if "refused" not in plan]
    hours = sum(plan["hours"] + plan["build_hours"] for plan in able)
    images = sum(plan["images_to_draw"] for plan in able)
    typer.echo(f"{len(able)} evaluations, {images} images to draw, at most {hours:.3f} hours; nothing was run")
    for line in _left_out(missing):
        typer.echo(line)
    for question in missing.questions:
        typer.echo(f"to be answered by {question.by}: {question.task} over {question.bench}")


def _plan(evaluation: Evaluation, places: Places, machine: running.Machine) -> dict[str, Any]:
    """What one evaluation would take, as plain data."""
    from harness.pipeline.estimate import estimate
    from harness.pipeline.evaluate import prepare

    said: dict[str, Any] = {
        "what": _name(evaluation), "cells": evaluation.cells, "command": evaluation.command(places),
    }  # fmt: skip
    try:
        estimated = estimate(prepare(evaluation.request, places), places.store, *running.gpus(machine))
    except UserError as error:
        return {**said, "refused": str(error)}
    names = ("run", "rows", "images_to_draw", "hours", "build_hours", "disk_mb")
    return {**said, **{name: estimated[name] for name in names}}
