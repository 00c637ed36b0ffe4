"""``harness compare``: two finished runs, row by row. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options
from harness.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        "compare", epilog=options.examples("harness compare runs/rece_i2p_paper_0a1b2c3d runs/uce_i2p_paper_4e5f6a7b")
    )(compare)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run, or its name under --out.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one, over the same rows.")],
    policy: Annotated[
        str | None, typer.Option("--policy", help="Policy card that judges both; default: the main one of both runs.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="A's and B's DEFENSE/VARIANT, e.g. rece/base,uce/base. Default: each method that both runs have with "
            "itself, and the one defense that only A has with the one that only B has.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Flipped rows to name, of either kind.")] = 5,
    out: options.Out = options.OUT,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Say per benchmark which verdicts flip from run A to run B, and whether the rates differ.

    Rows are paired by benchmark, row and sample, so that only flips count: McNemar's exact test (by prompt where
    prompts have several samples; Holm over the lines printed), and the paired interval of the difference. "Not told
    apart" is no agreement: beside it stands how large a difference this many rows leave open.
    """
    from harness.metrics.run_comparison import compare_runs
    from harness.report import run_comparison
    from harness.store.shards import read

    runs = [run if run.is_dir() else out / run for run in (run_a, run_b)]
    policies = _policies(runs, policy, cards)
    tables = [run_comparison.judged(read(run / "scores.parquet"), policies) for run in runs]
    chosen = None if methods is None else _methods(methods, tables, runs)
    pairs = compare_runs(tables[0], tables[1], chosen)
    if not pairs:
        raise UserError(
            f"{runs[0].name} and {runs[1].name} have no method over the same benchmark to compare: name one of each "
            "with --methods"
        )
    used = {concept: card.name for concept, card in policies.items()}
    if json:
        options.emit(
            {"runs": [run.name for run in runs], "policies": used, "compared": [one.to_json() for one in pairs]}
        )
        return
    typer.echo("policy " + ", ".join(f"{name} ({concept})" for concept, name in used.items()))
    typer.echo(run_comparison.text(pairs, (runs[0].name, runs[1].name), rows))


def _policies(runs: list[Path], policy: str | None, cards: Path | None) -> dict[str, Any]:
    """The policy of each concept: the one asked for, else the main one, on which both runs must agree."""
    from harness.cards.base import card_roots
    from harness.cards.load import load_card
    from harness.cards.policy import PolicyCard
    from harness.report.stored_run import read_record

    named: dict[str, dict[str, str]] = {}
    for run in runs:
        for concept, used in read_record(run)["policies"].items():
            named.setdefault(concept, {})[run.name] = used[0]["name"]
    chosen = {}
    for concept, names in named.items():
        if policy is None and len(set(names.values())) > 1:
            says = ", ".join(f"{run}: {name}" for run, name in names.items())
            raise UserError(f"the runs judge {concept} by different policies ({says}): choose one with --policy")
        chosen[concept] = load_card(PolicyCard, policy or next(iter(names.values())), card_roots(cards))
    return chosen


def _methods(text: str, tables: list[Any], runs: list[Path]) -> list[Any]:
    """The pair of methods asked for."""
    from harness.metrics.run_comparison import methods_of
    from harness.report.run_comparison import method

    names = options.split(text) if "," in text else (text, text)
    if len(names) == 1:
        names = (names[0], names[0])
    if len(names) != 2:
        raise UserError(f"--methods {text!r}: one of A and one of B, e.g. rece/base,uce/base")
    first, second = (
        method(name, methods_of(table), run.name) for name, table, run in zip(names, tables, runs, strict=True)
    )
    return [(first, second)]
