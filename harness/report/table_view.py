"""A table as every format shows it: title, column names, rows and notes, whatever it was assembled from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple


class TableView(NamedTuple):
    """What a table shows, in words."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Sequence[str]]]  # a cell is a line, or several
    notes: Sequence[str] = ()
    left: int = 1  # leading columns that name a row
    code: frozenset[str] = frozenset()  # headings of columns of commands and fingerprints


def cell_lines(cell: str | Sequence[str]) -> Sequence[str]:
    """A cell's lines."""
    return [cell] if isinstance(cell, str) else list(cell)


def to_csv(views: Sequence[TableView]) -> str:
    """Tables of one head below each other as CSV, the title of each in a first column; lines of a cell are spaced."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", *views[0].head])
    writer.writerows([view.title, *(" ".join(cell_lines(c)) for c in row)] for view in views for row in view.rows)
    return file.getvalue().rstrip("\n")
