"""Tables of the paper as one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.html.page import Grid, render

if TYPE_CHECKING:
    from harness.report.table import Table


def table_page(table: Table) -> str:
    """A paper's table with its notes and legend."""
    rows = [[*line.left, *line.entries] for line in table.lines()]
    notes = [*table.footnotes(), *table.legend()]
    grid = Grid(table.title, table.head(), rows, notes)
    return render("table.html.j2", title=table.title, stamps=[table.stamp()], tables=[grid]).rstrip()
