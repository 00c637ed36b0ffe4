"""The words of the code: a name says what it holds, in the words of docs/glossary.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Words that say nothing of what a name holds, or for which the glossary has another one.
RETIRED = {
    "found": "what it holds: missing_shards, rows, settings",
    "leg": "phase",
    "station": "actor group",
    "fate": "outcome",
    "ballot": "policy verdicts",
    "picture": "image",
    "outlook": "estimate",
    "site": "worker context",
    "told": "what it holds; a progress callback is report",
}


def words(name: str) -> set[str]:
    """The words of an identifier, lower case, without the s of a plural: ``readSites_of`` has read, site, of."""
    return {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, parameter, attribute, keyword, function, class and import alias."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name


def retired(path: Path) -> list[str]:
    """Identifiers of a file that have a retired word, each with its line and what to say."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path}:{line}: {name}: say {RETIRED[word]}"
        for line, name in identifiers(tree)
        if not name.endswith("NotFoundError")  # as Python and the hub call theirs
        for word in sorted(words(name) & RETIRED.keys())
    ]


@pytest.mark.parametrize("folder", ["harness", "tools"])
def test_no_identifier_has_a_retired_word(folder: str) -> None:
    assert [line for path in sorted((ROOT / folder).rglob("*.py")) for line in retired(path)] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("found = 1", ["found"]),
        ("def f(ballots): ...", ["ballots"]),
        ("x.the_site = 1", ["the_site"]),
        ("f(leg=1)", ["leg"]),
        ("class StationMaster: ...", ["StationMaster"]),
        ("try: ...\nexcept E as fate: ...", ["fate"]),
        ("import a as picture", ["picture"]),
        ("f'{found}'", ["found"]),
        ("# found\n'not found'\nfounder = legal = website = 1", []),
    ],
)
def test_a_retired_word_is_named(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert [line.split(": ")[1] for line in retired(path)] == names
