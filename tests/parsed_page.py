"""A page of a report read as a program would: its elements, tables and data, without a browser."""

from __future__ import annotations

import base64
import json
import zlib
from html.parser import HTMLParser
from typing import Any, NamedTuple

import numpy as np

_VOID = {"meta", "link", "img", "input", "br", "hr", "source"}
_TYPES = {"u1": "<u1", "u2": "<u2", "u4": "<u4", "f4": "<f4", "f8": "<f8"}


class Element(NamedTuple):
    """A tag with its attributes."""

    tag: str
    attributes: dict[str, str | None]


class Page(HTMLParser):
    """``elements`` in their order, ``tables`` by id as rows of cells, ``scripts`` by id (or "")."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.unclosed: list[str] = []
        self._table: str | None = None
        self._cell: list[str] | None = None
        self._kept: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append(Element(tag, attributes))
        if tag not in _VOID:
            self.unclosed.append(tag)
        if tag == "table":
            self._table = str(attributes.get("id", ""))
            self.tables[self._table] = []
        elif tag == "tr" and self._table is not None:
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag in ("script", "style"):
            self._kept = str(attributes.get("id", tag))
            self.texts[self._kept] = ""
        elif tag == "br" and self._cell is not None:
            self._cell.append("\n")

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th") and self._cell is not None and self._table is not None:
            self.tables[self._table][-1].append("".join(self._cell).strip())
            self._cell = None
        elif tag == "table":
            self._table = None
        elif tag in ("script", "style"):
            self._kept = None

    def handle_data(self, data: str) -> None:
        if self._kept is not None:
            self.texts[self._kept] += data
        if self._cell is not None:
            self._cell.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element with a tag."""
        return [element.attributes for element in self.elements if element.tag == tag]


def columns_of(page: Page) -> dict[str, list[Any]]:
    """The page's rows decoded: each column's values as the page's script reads them, None for nothing."""
    about = json.loads(page.texts["about"])
    data = zlib.decompress(base64.b64decode(page.texts["rows-data"]))
    columns: dict[str, list[Any]] = {}
    for column in about["columns"]:
        kind = np.dtype(_TYPES[column["type"]])
        values, data = np.frombuffer(data, kind, about["rows"]), data[kind.itemsize * about["rows"] :]
        columns[column["name"]] = [_value(column, value, about) for value in values]
    assert not data
    return columns


def _value(column: dict[str, Any], value: Any, about: dict[str, Any]) -> Any:
    if column["kind"] == "key":
        return about["ids"][value]
    if column["kind"] == "verdict":
        return [False, True, None][value]
    if column["kind"] == "float":
        return None if np.isnan(value) else float(value)
    if value == np.iinfo(value.dtype).max:
        return None
    if column["kind"] == "code":
        return column["words"][value]
    number = (int(value) + column["base"]) * 10.0 ** -column["digits"]
    return bool(number) if column["kind"] == "boolean" else number
