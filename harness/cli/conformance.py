"""``harness conformance``: hold a defense or a scorer, ours or another package's, to its contract."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cards.base import card_roots
from harness.cli import options

_SIGN = {"pass": "pass", "fail": "FAIL", "does not apply": "  --"}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("conformance", epilog=options.examples("harness conformance uce"))(conformance)


def conformance(
    name: Annotated[
        str, typer.Argument(help="Defense (also as esd:steps=200 or rece+saferedir) or scorer; see `harness list`.")
    ],
    concept: Annotated[
        str | None, typer.Option("--concept", help="What a defense removes. Default: nudity, or its card's first.")
    ] = None,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Try the contract on the shapes world, rule by rule; exit code 1 if one is broken.

    A rule that says nothing about what is tried is shown with the reason. What is built first is built with few steps.
    With --json: `name`, `conforms`, and `trials`, each with its `kind`, `provided_by`, `concept` and `rules`.
    """
    from harness.models.library_logs import silenced
    from harness.pipeline.conformance.run import findings, trials

    where = card_roots(cards)
    shown: list[dict[str, Any]] = []
    for trial in trials(name, where, concept):
        said = [f"{trial.kind} {trial.name}", *([f"of {trial.provider}"] if trial.provider else [])]
        said += [f"(concept: {trial.concept})"] if trial.concept else []
        if not json:
            typer.echo(" ".join(said))
        rules = []
        with silenced():
            for finding in findings(trial, where):
                rules.append(finding)
                if not json:
                    detail = f": {finding.detail}" if finding.detail else ""
                    typer.echo(f"  {_SIGN[finding.outcome]}  {finding.rule:<14}  {finding.says}{detail}")
        shown.append({
            "kind": trial.kind, "name": trial.name, "provided_by": trial.provider, "concept": trial.concept,
            "rules": [{**rule._asdict(), "seconds": round(rule.seconds, 2)} for rule in rules],
        })  # fmt: skip
    conforms = all(rule["outcome"] != "fail" for trial in shown for rule in trial["rules"])
    if json:
        options.emit({"name": name, "conforms": conforms, "trials": shown})
    if not conforms:
        raise typer.Exit(1)
