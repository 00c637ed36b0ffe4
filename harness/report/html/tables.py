"""Tables of the paper as one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.html.page import render
from harness.report.table_view import TableView

if TYPE_CHECKING:
    from harness.report.table import Table


def table_page(table: Table) -> str:
    """A paper's table with its notes and legend."""
    rows = [[*line.left, *line.entries] for line in table.lines()]
    notes = [*table.footnotes(), *table.legend()]
    grids = [TableView(table.title, table.head(), rows, notes)]
    origins = [[f"#{o.number}", o.method, list(o.benches), list(o.fingerprints)] for o in table.origins()]
    if origins:
        grids.append(TableView("Made by", ["run", "method", "benchmarks", "fingerprints"], origins, []))
    stamps = [*table.warnings(), table.stamp()]
    return render("table.html.j2", title=table.title, stamps=stamps, tables=grids).rstrip()
