"""Fingerprints: one short hash of all that a result depends on, and the comparison of what two were made of.

A stage's *key* is a JSON-able mapping of everything its output depends on: card values, weights'
identity, dtype, micro-batch, a digest of its own code, the versions of the libraries that matter,
and the fingerprints upstream. Its fingerprint is the hash of the key. Nothing here imports a model.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LENGTH = 16  # hex digits kept of the sha256: 64 bits


def digest(value: Any) -> str:
    """Short hash of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


# What stages import and no result depends on: how cards are found, where shards lie, how a ticket is retried.
# The values of cards are in the keys, and the columns of shards have a version of their own (``harness.store.schema``).
IGNORED = (
    "harness",
    "harness.cards",
    "harness.data.hub",
    "harness.defenses",  # the package itself, which finds mechanisms by name; what a key names is added to its closure
    "harness.errors",
    "harness.models.intact",
    "harness.models.library_logs",
    "harness.models.progress",
    "harness.models.weights",
    "harness.pipeline.conditions",
    "harness.pipeline.spec",
    "harness.pipeline.stage_specs",
    "harness.pipeline.stages.activity",
    "harness.pipeline.stages.attempts",
    "harness.pipeline.stages.base",
    "harness.pipeline.stages.build",  # what an artefact depends on is in its own key
    "harness.pipeline.stages.memory",
    "harness.pipeline.stages.watchdog",
    "harness.scorers",  # as of defenses
    "harness.scorers._find",
    "harness.store",
)
_OURS = __name__.partition(".")[0]
_WITH_ALL_BELOW = ("harness.cards", "harness.store")


def code(modules: Iterable[str]) -> str:
    """Hash of the code of ``modules`` and of all that they import, also inside functions.

    Only imports of a module's own package and of this one are followed; of other packages the versions count. Comments,
    docstrings and formatting do not count, nor do the modules of ``IGNORED``. The sources are parsed, not imported, so
    that a finished run can be recognised without torch.

    Args:
        modules: dotted names.

    Raises:
        ValueError: there is no such module.
    """
    content = hashlib.sha256()
    for name in closure(modules):
        content.update(name.encode() + b"\0" + _statements(_text(name)).encode() + b"\0")
    return content.hexdigest()[:LENGTH]


def closure(modules: Iterable[str]) -> list[str]:
    """``modules`` and every module of their package or of this one that they import, less those of ``IGNORED``."""
    reached: dict[str, None] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached[name] = None
            todo += [target for target in _imports(name) if not is_ignored(target)]
    return sorted(reached)


def is_ignored(module: str) -> bool:
    """Whether no result depends on the module's code."""
    return module in IGNORED or module.startswith(tuple(f"{name}." for name in _WITH_ALL_BELOW))


def _imports(module: str) -> tuple[str, ...]:
    """Modules of its own top-level package and of ours that ``module`` imports, and the packages that they lie in."""
    path = source_file(module)
    is_package = path is not None and path.name == "__init__.py"
    candidates = _candidates(module, is_package, _text(module))
    names = [name for name in candidates if source_file(name) is not None]
    packages = [".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)]
    return tuple(dict.fromkeys((*names, *packages)))


@cache
def _candidates(module: str, is_package: bool, source: str) -> tuple[str, ...]:
    """Dotted names of those packages that a module's imports may mean; of a function or a class there is no module."""
    tops = (module.partition(".")[0], _OURS)
    names: dict[str, None] = {}
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, is_package, node)
            names |= dict.fromkeys((base, *(f"{base}.{alias.name}" for alias in node.names)))
    return tuple(name for name in names if name.partition(".")[0] in tops)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    """The dotted name that a ``from ... import`` starts from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


@cache
def _statements(source: str) -> str:
    """Code without comments and docstrings, in one formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _text(module: str) -> str:
    path = source_file(module)
    if path is None:
        raise ValueError(f"no module {module!r} to take the digest of")
    return path.read_text(encoding="utf-8")


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def source_file(module: str) -> Path | None:
    """The module's source, found without importing it or its package; None where there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
    return None


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution; None where it is not installed."""
    return {name: _version(name) for name in sorted(set(distributions))}


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class FileHashes:
    """sha256 of files, remembered by path, size and modification time in one JSON file; and digests of code.

    Those of code are remembered for as long as the object lives, which is while something is planned.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        self._codes: dict[tuple[str, ...], str] = {}
        if memory is not None and memory.exists():
            with contextlib.suppress(OSError, ValueError):  # only a cache: what cannot be read is begun anew
                remembered = json.loads(memory.read_text())
                self._known = remembered if isinstance(remembered, dict) else {}

    def of(self, path: Path) -> str:
        """sha256 (hex) of the file at ``path``."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256_of(path)
            self._save()
        return self._known[key]

    def code(self, modules: Iterable[str]) -> str:
        """``code`` of the modules, whose sources are read once."""
        names = tuple(modules)
        if names not in self._codes:
            self._codes[names] = code(names)
        return self._codes[names]

    def of_folder(self, folder: Path) -> dict[str, str]:
        """sha256 of every file below ``folder``, by its path relative to it."""
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        return {p.relative_to(folder).as_posix(): self.of(p) for p in files}

    def _save(self) -> None:
        if self._memory is None:
            return
        part = self._memory.with_name(f"{self._memory.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):  # a store that cannot be written is somebody else's complaint
            part.write_text(json.dumps(self._known))
            part.replace(self._memory)


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, left value, right value) for every leaf in which two keys differ."""
    rows: list[tuple[str, Any, Any]] = []
    for name in sorted({*left, *right}):
        a, b = left.get(name), right.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += difference(a, b, f"{prefix}{name}.")
        elif a != b:
            rows.append((f"{prefix}{name}", a, b))
    return rows
