"""Formats that a table of the paper can be shown in."""

from __future__ import annotations

import json
from collections.abc import Callable

from harness.errors import UserError, nearest
from harness.report import markdown, terminal
from harness.report.html.tables import table_page
from harness.report.table import Table


def render(table: Table, form: str) -> str:
    """The table as text.

    Args:
        table: to render.
        form: "terminal", "md", "html", "csv" or "json".

    Raises:
        UserError: another form.
    """
    if form not in RENDERERS:
        raise UserError(f"unknown format {form!r}{nearest(form, RENDERERS)} (there are: {', '.join(RENDERERS)})")
    return RENDERERS[form](table)


RENDERERS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal.table_text,
    "md": markdown.table_page,
    "html": table_page,
    "csv": Table.to_csv,
    "json": lambda table: json.dumps(table.to_json(), ensure_ascii=False, indent=1),
}
