"""Formats that a table of the paper can be shown in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness.errors import UserError, nearest
from harness.report import latex, markdown, terminal
from harness.report.html.tables import table_page
from harness.report.table import Table


class Format(NamedTuple):
    """How a table is written, and the ending of files that are written so."""

    render: Callable[[Table], str]
    suffix: str | None = None


FORMATS: dict[str, Format] = {
    "terminal": Format(terminal.table_text),
    "md": Format(markdown.table_page, ".md"),
    "latex": Format(latex.table_fragment, ".tex"),
    "html": Format(table_page, ".html"),
    "csv": Format(Table.to_csv, ".csv"),
    "json": Format(lambda table: json.dumps(table.to_json(), ensure_ascii=False, indent=1), ".json"),
}


def render(table: Table, form: str) -> str:
    """The table as text.

    Args:
        table: to render.
        form: a name of FORMATS.

    Raises:
        UserError: another form.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}{nearest(form, FORMATS)} (there are: {', '.join(FORMATS)})")
    return FORMATS[form].render(table)


def format_of(path: Path) -> str | None:
    """The format that a file's ending implies; None for an ending that implies none."""
    return next((name for name, form in FORMATS.items() if form.suffix == path.suffix.lower()), None)
