"""A page from its template: styles, script and data within the file, and a policy that forbids it any network.

What may run in the page is named by its hash in the page's Content-Security-Policy, so that no text of a run (a
prompt, an error) can become script; data are JSON or base64 in elements that are never executed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report.table_view import cell_lines

_TEMPLATES = Path(__file__).parent / "templates"
_RATE = re.compile(r"^\s*(\d+)\s*/\s*(\d+)")
_NUMBER = re.compile(r"^[\[<(#\s]*(-?\d+(?:\.\d+)?)")


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: file in ``templates``.
        values: what it asks for.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "form-action 'none'; base-uri 'none'"
    )
    page = _environment().get_template(template)
    return page.render(policy=policy, style=style, script=script, **values) + "\n"


def island(value: Any) -> str:
    """Plain data as JSON for an element of the page; nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def sort_key(cell: str | Sequence[str]) -> str:
    """What a cell is sorted by: the share of ``k/n``, a number it begins with, or nothing (its text)."""
    text = cell if isinstance(cell, str) else next(iter(cell), "")
    if (rate := _RATE.match(text)) and int(rate[2]):
        return f"{int(rate[1]) / int(rate[2]):.6g}"
    return number[1] if (number := _NUMBER.match(text)) else ""


@cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"island": island, "sort_key": sort_key, "lines": cell_lines}
    return environment
