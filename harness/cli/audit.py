"""``harness audit``: a printed table held against the sizes of its benchmarks. Loads no model and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("audit", epilog=options.examples("harness audit table5", "harness audit results.csv appendix.csv"))(
        audit
    )


def audit(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE...",
            help="Report cards (see `harness list reports`) or CSV files: a line of column names, a line "
            "n,95,95,1000 with the images of each column, then a line for each row, in percent. An empty cell is not "
            "in the text.",
        ),
    ],
    readings: Annotated[
        bool, typer.Option("--readings", help="Also a line for every number: what it is, of which k, how telling.")
    ] = False,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Find numbers of a printed table that cannot be, and what explains them.

    A rate over n images is k/n, so a printed percentage fits one n and mostly not another. Each number is exact, cut
    off instead of rounded, a mean of several runs, or infeasible. Numbers that do not fit are tried in the other
    columns of their row (exchanged, rotated), over another column's n, and as means; each explanation comes with the
    chance that it would fit numbers picked at random. Rows that other tables print are compared: a card's with those
    of the same paper, CSV files with each other. Lines with ! are alarms.
    """
    from harness.cards.base import card_roots
    from harness.cards.load import load_card, load_cards
    from harness.cards.report import ReportCard
    from harness.metrics.audit import audit as audited
    from harness.report import audit as report

    known = [card for card in load_cards(ReportCard, card_roots(cards)) if isinstance(card, ReportCard)]
    files = {name: report.read_csv(Path(name)) for name in tables if name.endswith(".csv") or Path(name).is_file()}
    audits = []
    for name in tables:
        if name in files:
            table, beside = files[name], [other for path, other in files.items() if path != name]
        else:
            card = load_card(ReportCard, name, card_roots(cards))
            table, beside = report.of_card(card), [report.of_card(c) for c in report.same_paper(card, known)]
        audits.append(audited(table, beside))
    if json:
        options.emit({"tables": [report.as_json(one) for one in audits]})
        return
    typer.echo("\n\n".join(report.text(one, readings) for one in audits))
