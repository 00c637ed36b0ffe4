"""A CSV file of prompts, read strictly: whatever is wrong is said with file, line and column.

Nothing is guessed: an empty cell stays an empty text (never NaN), a quoted line break belongs to its cell,
a seed is an unsigned 64-bit integer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from harness.cardfile import show
from harness.errors import UserError, nearest

csv.field_size_limit(1 << 20)  # of one cell, in characters; an unclosed quote ends there, not at the file's end

Value = TypeVar("Value")


class Record(NamedTuple):
    """One row and the line of the file that it starts in."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class Sheet:
    """A file's identity and content."""

    path: Path
    sha256: str
    header: tuple[str, ...]
    records: tuple[Record, ...]

    def find(self, candidates: Sequence[str]) -> int | None:
        """Place of the first candidate that is a column of the file; None when there is none."""
        for name in candidates:
            if name in self.header:
                return self.header.index(name)
        return None

    def need(self, candidates: Sequence[str]) -> int:
        """Place of the first candidate that is a column of the file.

        Raises:
            UserError: naming the candidates and the columns there are.
        """
        place = self.find(candidates)
        if place is None:
            wanted = " or ".join(repr(c) for c in candidates)
            have = ", ".join(repr(h) for h in self.header[:20])
            raise UserError(
                f"{show(self.path)}:1: no column {wanted} (it has: {have}){nearest(candidates[0], self.header)}"
            )
        return place

    def values(self, place: int, parse: Callable[[str], Value]) -> list[Value]:
        """The column's cells, parsed.

        Raises:
            UserError: with file, line and column, when ``parse`` raises ValueError.
        """
        found: list[Value] = []
        for line, cells in self.records:
            try:
                found.append(parse(cells[place]))
            except ValueError as error:
                raise UserError(f"{show(self.path)}:{line}: column {self.header[place]!r}: {error}") from None
        return found

    def refuse_repeats(self, place: int) -> None:
        """Checks that a column identifies its row.

        Raises:
            UserError: naming both lines of the first value that stands twice.
        """
        seen: dict[str, int] = {}
        for line, cells in self.records:
            if cells[place] in seen:
                raise UserError(
                    f"{show(self.path)}:{line}: column {self.header[place]!r}: "
                    f"id {cells[place]!r} is given twice (first in line {seen[cells[place]]})"
                )
            seen[cells[place]] = line


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be read: {error.strerror}") from None


def read_sheet(data: bytes, path: Path) -> Sheet:
    """Reads a whole file: UTF-8 (a byte order mark is dropped), comma separated, quoted as RFC 4180 says.

    Args:
        data: its bytes.
        path: what errors call it.

    Raises:
        UserError: wrong encoding, no rows, a row with too few or too many cells, an unclosed quote.
    """
    text = _decode(data, path)
    header, records = _split(text, path)
    repeated = sorted({h for h in header if header.count(h) > 1})
    if repeated:
        raise UserError(f"{show(path)}:1: column {repeated[0]!r} is given twice")
    if not records:
        raise UserError(f"{show(path)}: holds no rows" + (" (only a header)" if header else ""))
    return Sheet(path, hashlib.sha256(data).hexdigest(), tuple(header), tuple(records))


def _decode(data: bytes, path: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{show(path)}:1: column 1: is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise UserError(
            f"{show(path)}:{line}: column {column}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from None


def _split(text: str, path: Path) -> tuple[list[str], list[Record]]:
    """Header and records; a blank line is no record."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    records: list[Record] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = cells
            elif cells:
                _check_width(cells, header, line, path)
                records.append(Record(line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        cut = "a quote that is never closed (is the file truncated?)"
        unclosed = "unexpected end of data" in str(error) or "field limit" in str(error)
        raise UserError(f"{show(path)}:{line}: {cut if unclosed else f'not CSV: {error}'}") from None
    return header, records


def _check_width(cells: Sequence[str], header: Sequence[str], line: int, path: Path) -> None:
    if len(cells) < len(header):
        raise UserError(
            f"{show(path)}:{line}: ends before column {header[len(cells)]!r}: "
            f"{len(cells)} of {len(header)} cells (is the file truncated?)"
        )
    if len(cells) > len(header):
        raise UserError(
            f"{show(path)}:{line}: {len(cells)} cells for {len(header)} columns (a text with a comma needs quotes)"
        )


def seed(cell: str) -> int | None:
    """An unsigned 64-bit integer, or None for an empty cell; ``"7.0"``, as pandas writes it, is 7.

    Raises:
        ValueError: negative, too large, or no integer.
    """
    if not cell.strip():
        return None
    match = re.fullmatch(r"([-+]?)(\d+)(?:\.0*)?", cell.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"seed {cell!r} is no whole number")
    value = int(match[2])
    if match[1] == "-" and value:
        raise ValueError(f"negative seed {cell}")
    if value >= 1 << 64:
        raise ValueError(f"seed {cell} does not fit 64 bits")
    return value


def guidance(cell: str) -> float | None:
    """A guidance scale, or None for an empty cell.

    Raises:
        ValueError: no finite number of at least 0.
    """
    if not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"guidance {cell!r} is no number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"guidance {cell!r} is no finite number of at least 0")
    return value


def pixels(cell: str) -> int | None:
    """A width or height, or None for an empty cell.

    Raises:
        ValueError: no positive whole number.
    """
    if not cell.strip():
        return None
    match = re.fullmatch(r"(\d+)(?:\.0*)?", cell.strip(), re.ASCII)
    if match is None or not 0 < int(match[1]) <= 1 << 14:
        raise ValueError(f"size {cell!r} is no whole number of pixels")
    return int(match[1])
