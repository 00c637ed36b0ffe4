r"""A strict reader of LaTeX tables, for where no TeX is at hand.

It knows the commands and environments that the tables use and refuses all else: a sign that TeX would take for its own,
a brace or environment that is not closed, a row with another number of cells than the table has columns, and a line of
a cell that the ``\\`` before it would take for its argument.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WITH_ARGUMENTS = {"begin": 1, "end": 1, "caption": 1, "label": 1, "resizebox": 3}
PLAIN = {
    "centering", "toprule", "midrule", "bottomrule", "par", "medskip", "raggedright", "footnotesize", "textwidth",
    "checkmark", "times", "pm", "cdot", "alpha", "eta", "lambda", "geq", "leq", "ldots",
}  # fmt: skip
SIGNS = {
    "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<", "textgreater": ">",
    "textbar": "|", "textasciigrave": "`", "ldots": "…", "checkmark": "✓", "times": "✗", "pm": "±", "cdot": "·",
    "alpha": "α", "eta": "η", "lambda": "λ", "geq": "≥", "leq": "≤",
}  # fmt: skip
TOKEN = re.compile(r"\\([a-zA-Z]+)\*?|\\(.)|([{}$&#%_^~])|(\s+)|(.)", re.DOTALL)


class Environment(NamedTuple):
    """What was begun and is not ended yet."""

    name: str
    columns: int  # of a tabular
    cells: int  # in the row so far


def without_comments(text: str) -> str:
    return re.sub(r"(?<!\\)%.*", "", text)


def columns_of(spec: str) -> int:
    """How many columns a tabular's argument declares."""
    return len(re.sub(r"@\{[^}]*\}", "", spec).strip())


def check(text: str) -> list[int]:
    """Read a fragment; returns how many columns each tabular has.

    Raises:
        ValueError: it is not what TeX would take, with the place.
    """
    plain = without_comments(text)
    if strange := sorted({sign for sign in plain if ord(sign) > 0x17F}):
        raise ValueError(f"signs that need a package: {strange}")
    open_environments: list[Environment] = []
    widths: list[int] = []
    depth, math, position = 0, False, 0
    while position < len(plain):
        match = TOKEN.match(plain, position)
        assert match is not None
        command, escaped, special, _, _ = match.groups()
        position = match.end()
        near = plain[max(0, match.start() - 30) : position + 30]
        if command in ("begin", "end"):
            name, position = argument(plain, position)
            if command == "end":
                last = open_environments.pop() if open_environments else None
                if last is None or last.name != name:
                    raise ValueError(f"\\end{{{name}}} ends nothing: {near!r}")
                if name == "tabular" and last.cells > 1:
                    check_width(last, near)
                continue
            columns = 0
            if name == "tabular":
                if plain[position] == "[":
                    position = plain.index("]", position) + 1
                spec, position = argument(plain, position)
                columns = columns_of(spec)
                widths.append(columns)
            elif plain[position] == "[":
                position = plain.index("]", position) + 1
            open_environments.append(Environment(name, columns, 1))
        elif command is not None:
            if command not in PLAIN and command not in WITH_ARGUMENTS and command not in SIGNS:
                raise ValueError(f"no command \\{command} here: {near!r}")
        elif escaped == "\\":
            if re.match(r"\s*[\[*]", plain[position:]):
                raise ValueError(f"the next line would be an argument of the line break: {near!r}")
            check_width(open_environments[-1], near)
            open_environments[-1] = open_environments[-1]._replace(cells=1)
        elif special == "{":
            depth += 1
        elif special == "}":
            depth -= 1
            if depth < 0:
                raise ValueError(f"a brace too many: {near!r}")
        elif special == "$":
            math = not math
        elif special == "&":
            open_environments[-1] = open_environments[-1]._replace(cells=open_environments[-1].cells + 1)
        elif special is not None:
            raise ValueError(f"{special!r} is a sign of TeX's: {near!r}")
    if depth or math or open_environments:
        raise ValueError(f"not closed: braces {depth}, math {math}, {[e.name for e in open_environments]}")
    return widths


def check_width(environment: Environment, near: str) -> None:
    if environment.name == "tabular" and environment.cells != environment.columns:
        raise ValueError(f"{environment.cells} cells in a row of {environment.columns} columns: {near!r}")


def argument(text: str, position: int) -> tuple[str, int]:
    """What stands in the braces at ``position``, and where it ends."""
    if text[position] != "{":
        raise ValueError(f"no argument: {text[position : position + 20]!r}")
    depth = 0
    for i in range(position, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[position + 1 : i], i + 1
    raise ValueError(f"an argument without end: {text[position : position + 20]!r}")


def shown(text: str) -> str:
    """The signs that a piece of escaped text shows."""
    text = text.replace("{[}", "[").replace("{]}", "]").replace("{*}", "*")
    text = re.sub(r"(?<!\\)\$\\([a-zA-Z]+)\$|\\([a-zA-Z]+)\{\}", lambda named: SIGNS[named[1] or named[2]], text)
    text = text.replace("-{}", "-")
    return re.sub(r"\\([{}$&#%_])", r"\1", text)
