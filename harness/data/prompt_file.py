"""A file of prompts, CSV or grouped JSON, read strictly: whatever is wrong is said with file, line and column.

Nothing is guessed: an empty cell stays an empty text (never NaN), a quoted line break belongs to its cell,
a seed is an unsigned 64-bit integer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.cards.yaml_file import show
from harness.errors import UserError, nearest

csv.field_size_limit(1 << 20)  # of one cell, in characters; an unclosed quote ends there, not at the file's end

LARGEST = 64 << 20  # bytes of a file of prompts
_LONGEST = 40  # characters of a cell that a message repeats: it may be a prompt, which belongs in no log

Value = TypeVar("Value")


_PARTED = {"\t": "tabs", ";": "semicolons", "|": "bars"}  # instead of commas


class Record(NamedTuple):
    """One row and the line of the file that it starts in, 0 where the format does not say."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class PromptFile:
    """A file's identity and content."""

    path: Path
    sha256: str
    header: tuple[str, ...]
    records: tuple[Record, ...]

    def at(self, line: int) -> str:
        """The place of a line, as errors name it."""
        return f"{show(self.path)}:{line}" if line else show(self.path)

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
            have = ", ".join(_brief(h) for h in self.header[:20])
            parted = next((n for s, n in _PARTED.items() if len(self.header) == 1 and s in self.header[0]), None)
            hint = f"; its cells are parted by {parted}: save it with commas" if parted else ""
            raise UserError(
                f"{show(self.path)}:1: no column {wanted} (it has: {have}){hint or nearest(candidates[0], self.header)}"
            )
        return place

    def values(self, place: int, parse: Callable[[str], Value]) -> list[Value]:
        """The column's cells, parsed.

        Raises:
            UserError: with file, line and column, when ``parse`` raises ValueError.
        """
        values: list[Value] = []
        for line, cells in self.records:
            try:
                values.append(parse(cells[place]))
            except ValueError as error:
                raise UserError(f"{self.at(line)}: column {self.header[place]!r}: {error}") from None
        return values

    def refuse_repeats(self, place: int) -> None:
        """Checks that a column identifies its row.

        Raises:
            UserError: naming both lines of the first value that stands twice.
        """
        seen: dict[str, int] = {}
        for line, cells in self.records:
            if cells[place] in seen:
                raise UserError(
                    f"{self.at(line)}: column {self.header[place]!r}: "
                    f"id {_brief(cells[place])} is given twice (first in line {seen[cells[place]]})"
                )
            seen[cells[place]] = line


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UserError: it cannot be read, or is too large for a file of prompts.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UserError(f"{show(path)}: holds more than {LARGEST >> 20} MiB, which is no file of prompts")
    return data


def read_prompt_file(data: bytes, path: Path) -> PromptFile:
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
    return PromptFile(path, hashlib.sha256(data).hexdigest(), tuple(header), tuple(records))


def read_groups(data: bytes, path: Path, task: str, dropped: Collection[str] = ()) -> PromptFile:
    """Reads one task of a JSON file ``{task: {group: [prompt, ...]}}``: columns group and prompt, in the file's order.

    Args:
        data: the file's bytes.
        path: what errors call it.
        task: which of the file's tasks.
        dropped: groups, in any case of letters, whose texts are not kept: their rows stay, with an empty prompt.

    Raises:
        UserError: wrong encoding, no JSON, another structure, no such task, a key given twice, no rows.
    """
    text = _decode(data, path)
    try:
        content = json.loads(text, object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        cut = " (is the file truncated?)" if error.pos >= len(text.rstrip()) else ""
        raise UserError(f"{show(path)}:{error.lineno}: column {error.colno}: not JSON{cut}") from None
    except RecursionError:
        raise UserError(f"{show(path)}: is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{show(path)}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{show(path)}: holds no tasks; {{task: {{group: [prompt, ...]}}}} is wanted")
    if task not in content:
        have = ", ".join(map(repr, content)) or "none"
        raise UserError(f"{show(path)}: no task {task!r} (it has: {have}){nearest(task, content)}")
    records = []
    groups = content[task]
    if not isinstance(groups, dict):
        raise UserError(f"{show(path)}: task {task!r} holds no groups")
    kept_out = {name.strip().casefold() for name in dropped}
    for group, prompts in groups.items():
        where = f"{show(path)}: task {task!r}, group {group!r}"
        if not isinstance(prompts, list):
            raise UserError(f"{where}: holds no list of prompts")
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise UserError(f"{where}, prompt {i + 1}: is no text but {type(prompt).__name__}")
            if not _encodable(group + prompt):
                raise UserError(f"{where}, prompt {i + 1}: holds half of a surrogate pair, which is no character")
            records.append(Record(0, [group, "" if group.strip().casefold() in kept_out else prompt]))
    if not records:
        raise UserError(f"{show(path)}: task {task!r} holds no rows")
    return PromptFile(path, hashlib.sha256(data).hexdigest(), ("group", "prompt"), tuple(records))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's content.

    Raises:
        ValueError: a key stands twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return record


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
    """Header and records; a blank line is no record, nor is one of spaces where there are several columns."""
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    records: list[Record] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = cells
            elif len(cells) > 1 or (cells and (len(header) == 1 or cells[0].strip())):
                _check_width(cells, header, line, path)
                records.append(Record(line, cells))
            line = reader.line_num + 1
            lines.taken = 0
    except csv.Error as error:
        cut = "a quote that is never closed (is the file truncated?)"
        raise UserError(f"{show(path)}:{line}: {cut if lines.swallowed else f'not CSV: {error}'}") from None
    return header, records


class _Lines:
    """The lines of a text, as a CSV reader takes them."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="")
        self.taken = 0  # characters of the record at hand
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.taken += len(line)
            yield line
        self._ended = True

    @property
    def swallowed(self) -> bool:
        """Whether a record took the rest of the text, or more of it than a cell may have: a quote is never closed."""
        return self._ended or self.taken > csv.field_size_limit()


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


def _brief(cell: str) -> str:
    """A cell as messages repeat it."""
    return repr(cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 3]}...")


def seed(cell: str) -> int | None:
    """An unsigned 64-bit integer, or None for an empty cell; ``"7.0"``, as pandas writes it, is 7.

    Raises:
        ValueError: negative, too large, or no integer.
    """
    if not cell.strip():
        return None
    match = re.fullmatch(r"([-+]?)(\d+)(?:\.0*)?", cell.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"seed {_brief(cell)} is no whole number")
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
        value = float(cell if cell.isascii() and "_" not in cell else "")  # float itself reads 1_0 as 10
    except ValueError:
        raise ValueError(f"guidance {cell!r} is no number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"guidance {_brief(cell)} is no finite number of at least 0")
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
        raise ValueError(f"size {_brief(cell)} is no whole number of pixels")
    return int(match[1])
