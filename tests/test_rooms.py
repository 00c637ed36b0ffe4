"""The layout of the package and its words: which rooms there are, that imports go one way only (docs/architecture.md),
and that names say what they hold, in the words of docs/glossary.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "harness"
# A room imports only from rooms of lower floors, and from itself.
FLOORS = {
    "errors": 0, "shapes": 1, "cards": 2, "store": 2, "data": 3, "metrics": 3, "models": 4, "defenses": 5,
    "regenerators": 5, "scorers": 5, "report": 6, "judges": 6, "pipeline": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
MOST_ENTRIES = 17
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


def modules(package: Path) -> dict[str, Path]:
    """Dotted name to file of every module."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
        names[dotted.removesuffix(".__init__")] = path
    return names


def imports(package: Path) -> Iterator[tuple[str, int, str]]:
    """(module, line, imported module) of every import within the package, wherever it stands in a file."""
    known = modules(package)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = name.split(".") + (["__init__"] if path.name == "__init__.py" else [])
                    base = ".".join([*parts[: len(parts) - node.level], *([node.module] if node.module else [])])
                named = (f"{base}.{alias.name}" for alias in node.names)
                targets = [full if full in known else base for full in named]
            else:
                continue
            yield from ((name, node.lineno, t) for t in targets if t in known and t != name)


def upward(package: Path) -> list[str]:
    """Imports that go up, or across between rooms of one floor."""
    wrong = []
    for name, line, target in imports(package):
        rooms = [dotted.split(".")[1] if "." in dotted else None for dotted in (name, target)]
        own, other = rooms
        if own is None or other is None or own == other:
            continue
        if own not in FLOORS or other not in FLOORS or FLOORS[other] >= FLOORS[own]:
            wrong.append(f"{name}:{line} imports {target}")
    return wrong


def circles(package: Path) -> list[list[str]]:
    """Import circles between files; a package's ``__init__`` is a file like any other."""
    graph: dict[str, set[str]] = {name: set() for name in modules(package)}
    for name, _, target in imports(package):
        graph[name].add(target)
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, [*trail, name])
        done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_the_package_has_few_entries() -> None:
    entries = sorted(p.name for p in PACKAGE.iterdir() if p.name != "__pycache__")
    assert len(entries) <= MOST_ENTRIES, entries
    assert {Path(e).stem for e in entries if e.endswith(".py") or (PACKAGE / e).is_dir()} - {"__init__"} == set(FLOORS)


def test_a_room_imports_only_from_lower_floors() -> None:
    assert upward(PACKAGE) == []


def test_no_two_files_import_each_other() -> None:
    assert circles(PACKAGE) == []


def test_files_and_functions_stay_short() -> None:
    long = [f"{p}: {n} lines" for p in modules(PACKAGE).values() if (n := len(p.read_text().splitlines())) > MOST_LINES]
    for path in modules(PACKAGE).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{path}:{node.name}: {lines} lines")
    assert long == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("from harness.pipeline import run\n", ["harness.models.net:1 imports harness.pipeline.run"]),
        ("def f():\n    import harness.pipeline.run\n", ["harness.models.net:2 imports harness.pipeline.run"]),
        (
            "if T:\n    from ..pipeline.run import go\n",
            ["harness.models.net:2 imports harness.pipeline.run"],
        ),
        ("from harness.cards import base\n", []),
    ],
)
def test_an_import_that_goes_up_is_named(tmp_path: Path, text: str, wrong: list[str]) -> None:
    package = tmp_path / "harness"
    for name in ("models/net.py", "pipeline/run.py", "cards/base.py", "cards/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text if name == "models/net.py" else "")
    assert upward(package) == wrong


def test_a_circle_is_named(tmp_path: Path) -> None:
    package = tmp_path / "harness"
    (package / "cards").mkdir(parents=True)
    (package / "cards/a.py").write_text("def f():\n    from harness.cards import b\n")
    (package / "cards/b.py").write_text("from harness.cards import a\n")
    assert circles(package) == [["harness.cards.a", "harness.cards.b", "harness.cards.a"]]


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
