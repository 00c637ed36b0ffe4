"""Tables to audit, from report cards or CSV files, and what the audit found, in words."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cards.report import Column, ReportCard, percent_of
from harness.errors import UserError
from harness.metrics.audit import Audit, Finding, PrintedTable

SIZES = "n"  # the first cell of the line that says how many images each column is of
_ABSENT = ("", "-", "–", "—", "n/a", "na")
_NUMBER = re.compile(r"\d{1,3}(\.\d+)?")


def of_card(card: ReportCard) -> PrintedTable:
    """A report card's printed shares, as percentages; rows are called ROW/VARIANT, columns as in the card.

    Means and seconds are no shares of anything, and stay out.
    """
    columns = {column.key: column for column in card.columns if column.n is not None and column.unit != "number"}
    rows = {
        f"{row}/{variant}": {name: _percent(numbers[name], column) for name, column in columns.items()}
        for row, variants in card.printed.items()
        for variant, numbers in variants.items()
        if any(numbers[name] is not None for name in columns)
    }
    return PrintedTable(card.name, {name: column.n for name, column in columns.items() if column.n is not None}, rows)


def _percent(number: str | None, column: Column) -> str | None:
    return None if number is None else percent_of(number, column)


def same_paper(card: ReportCard, cards: Sequence[ReportCard]) -> list[ReportCard]:
    """Other tables of the same paper, whose rows of the same name must print the same numbers."""
    paper = card.paper.split(",")[0]
    return [other for other in cards if other.name != card.name and other.paper.split(",")[0] == paper]


def read_csv(path: Path) -> PrintedTable:
    """A table from a CSV file: column names, a line that begins with ``n``, then a line a row; percentages.

    Raises:
        UserError: the file cannot be read or is not such a table, with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if len(lines) < 3 or lines[1][0].casefold() != SIZES:
        raise UserError(
            f"{path}: a table has a line of column names, a line that begins with {SIZES!r} and says how many images "
            "each column is of, and a line for each row"
        )
    (_, *columns), (_, *counts), *rows = lines
    if len(set(columns)) != len(columns):
        raise UserError(f"{path}: two columns have the same name")
    sizes = {name: _size(path, name, count) for name, count in zip(columns, counts, strict=False)}
    printed: dict[str, dict[str, str | None]] = {}
    for name, *cells in rows:
        if name in printed:
            raise UserError(f"{path}: two rows are called {name!r}")
        if len(cells) != len(columns) or len(counts) != len(columns):
            raise UserError(f"{path}: row {name!r} has {len(cells)} numbers for {len(columns)} columns")
        printed[name] = {column: _cell(path, name, column, cell) for column, cell in zip(columns, cells, strict=True)}
    return PrintedTable(path.stem, sizes, printed)


def _size(path: Path, column: str, count: str) -> int:
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"{path}: n of column {column!r} is {count!r}, not a number of images")
    return int(count)


def _cell(path: Path, row: str, column: str, cell: str) -> str | None:
    number = cell.removesuffix("%").strip()
    if number.casefold() in _ABSENT:
        return None
    if not _NUMBER.fullmatch(number) or float(number) > 100:
        raise UserError(f"{path}: {row!r} under {column!r} is {cell!r}, not a percentage (empty: not in the text)")
    return number


def text(audit: Audit, readings: bool = False) -> str:
    """The audit for a terminal: how many numbers are of which kind, then each finding.

    Args:
        found: the audit.
        readings: also a line for every printed number.
    """
    counts = [f"{count} {kind}" for kind, count in audit.counts().items() if count]
    lines = [f"{audit.table}: {len(audit.readings)} numbers: {', '.join(counts)}"]
    lines += [_finding(finding) for finding in audit.findings]
    if not any(finding.alarm for finding in audit.findings):
        lines.append("  every number is a share of its column's n" if audit.readings else "  nothing to audit")
    if readings:
        lines += [_reading(reading._asdict()) for reading in audit.readings if reading.number is not None]
    return "\n".join(lines)


def _finding(finding: Finding) -> str:
    mark = "!" if finding.alarm else " "
    sure = "" if finding.chance is None else f" [by chance: {_share(finding.chance)}]"
    return f"{mark} {', '.join(finding.rows)}: {finding.text}{sure}"


def _reading(r: dict[str, Any]) -> str:
    count = "no k" if r["k"] is None else f"{r['k']}/{r['n'] * r['runs']}"
    fits = f"{100 * r['chance']:.0f}% of such numbers fit n = {r['n']}"
    return f"    {r['row']}  {r['column']}: {r['number']}  {r['kind']}  {count}  ({fits})"


def _share(chance: float) -> str:
    return f"{chance:.2g}" if chance >= 1e-4 else f"{chance:.0e}"


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as plain data."""
    return {
        "table": audit.table,
        "counts": audit.counts(),
        "alarms": sum(finding.alarm for finding in audit.findings),
        "findings": [{**vars(finding), "alarm": finding.alarm} for finding in audit.findings],
        "readings": [reading._asdict() for reading in audit.readings],
    }
