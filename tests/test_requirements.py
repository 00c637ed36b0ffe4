"""What the project imports is declared, and what is pinned answers what is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINNED = {name: ROOT / "requirements" / f"{name}.txt" for name in ("run", "dev", "cluster")}
PIN = re.compile(
    r"^(?P<name>[a-z0-9._-]+)(\[[a-z0-9,_-]+\])?==(?P<version>\S+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)$"
)


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


CORE = _names(PROJECT["dependencies"])
OPTIONAL = {name for extra, texts in EXTRAS.items() if extra != "dev" for name in _names(texts)}
DEV = CORE | OPTIONAL | _names(EXTRAS["dev"])


def _imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, bool]]:
    """Top-level names of the imports under a node, and whether each is inside a function."""
    for node in ast.iter_child_nodes(tree):
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], inside
        yield from _imports(node, inside)


def _undeclared(folder: str, everywhere: set[str], in_functions: set[str]) -> list[str]:
    """Imports under a folder that no declared distribution provides; the folder's own modules are left out."""
    distributions = metadata.packages_distributions()
    sources = sorted((ROOT / folder).rglob("*.py"))
    ours = ("harness", "tests", "benchmarks", "tools")
    own = {*ours, *(path.stem for other in ours[1:] for path in (ROOT / other).rglob("*.py"))}
    flaws = set()
    for path in sources:
        for name, deferred in _imports(ast.parse(path.read_text())):
            if name in sys.stdlib_module_names or name in own:
                continue
            providers = {canonicalize_name(d) for d in distributions.get(name, [])}
            if not providers & (everywhere | in_functions if deferred else everywhere):
                flaws.add(f"{path.relative_to(ROOT)}: {name} ({', '.join(sorted(providers)) or 'not installed'})")
    return sorted(flaws)


def test_whatever_the_package_imports_is_a_declared_dependency() -> None:
    """By distribution: ``cv2`` must be declared as opencv-python-headless. An extra's import waits in a function."""
    assert _undeclared("harness", CORE, OPTIONAL) == []


@pytest.mark.parametrize("folder", [f for f in ("tests", "benchmarks", "tools") if (ROOT / f).is_dir()])
def test_whatever_tests_and_tools_import_is_declared_for_development(folder: str) -> None:
    assert _undeclared(folder, DEV, set()) == []


def test_an_undeclared_import_would_be_seen(tmp_path: Path) -> None:
    code = "import cv2\ndef f():\n    from openai.types import chat\nclass C:\n    import yaml\n"
    assert list(_imports(ast.parse(code))) == [("cv2", False), ("openai", True), ("yaml", False)]
    assert "opencv-python-headless" in metadata.packages_distributions()["cv2"]


def _pins(path: Path) -> dict[str, str]:
    """Versions by name; a line that is no pin with hashes is an error."""
    text = re.sub(r"(?m)^ *#.*\n", "", path.read_text())
    pins = {}
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        pin = PIN.match(line)
        assert pin, f"{path.name}: no pin with hashes: {line[:80]}"
        pins[canonicalize_name(pin["name"])] = pin["version"]
    return pins


@pytest.mark.parametrize("name", PINNED)
def test_everything_pinned_has_its_hashes_and_no_index_of_a_machine(name: str) -> None:
    assert len(_pins(PINNED[name])) > 80
    assert not re.search(r"(?m)^\s*-|://|file:|/opt|/root|/home", PINNED[name].read_text().replace("    --hash", ""))


def test_what_a_run_needs_is_pinned_alike_everywhere() -> None:
    run = _pins(PINNED["run"])
    for name in ("dev", "cluster"):
        assert run.items() < _pins(PINNED[name]).items()


def _with_extras(texts: list[str]) -> Iterator[Requirement]:
    """The requirements, those of the project's own extras in place of their names."""
    for requirement in map(Requirement, texts):
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            for extra in sorted(requirement.extras):
                yield from _with_extras(EXTRAS[extra])
        else:
            yield requirement


@pytest.mark.parametrize("name", PINNED)
def test_the_pins_answer_the_declared_ranges(name: str) -> None:
    """Where this fails, pyproject.toml was changed without `make lock`."""
    extras = {"run": (), "dev": ("dev",), "cluster": ("cluster", "s3")}[name]
    texts = PROJECT["dependencies"] + [text for extra in extras for text in EXTRAS[extra]]
    pins = _pins(PINNED[name])
    unmet = [str(r) for r in _with_extras(texts) if pins.get(canonicalize_name(r.name), "0") not in r.specifier]
    assert unmet == []


def test_the_held_pair_and_the_build_backend_are_pinned() -> None:
    pins = _pins(PINNED["run"])
    held = [Requirement(line) for line in (ROOT / "requirements/held.in").read_text().splitlines() if line[0] != "#"]
    assert {r.name for r in held} == {"torch", "torchvision"}
    build = [Requirement(line) for line in (ROOT / "requirements/build.in").read_text().splitlines() if line[0] != "#"]
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(backend) <= {str(r) for r in build}
    assert [str(r) for r in held + build if pins[canonicalize_name(r.name)] not in r.specifier] == []
