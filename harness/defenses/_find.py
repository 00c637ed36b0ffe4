"""Find a mechanism's module by its name, ours or an installed package's, and what it declares, without importing it."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.cards import plugins
from harness.errors import UserError, nearest
from harness.store import fingerprint

_FOLDER = Path(__file__).parent
_PACKAGE = __name__.rpartition(".")[0]


def names() -> list[str]:
    """The mechanisms: modules of this package that define ``load``, and what installed packages bring."""
    return sorted({*_own_names(), *plugins.names("defenses")})


def faults() -> dict[str, str]:
    """Why mechanisms that installed packages bring cannot be used, by name; imports them."""
    reasons = {}
    for name in plugins.names("defenses"):
        try:
            module(name)
        except UserError as error:
            reasons[name] = str(error)
    return reasons


def plugin(mechanism: str) -> plugins.Plugin | None:
    """What brings the mechanism; None where it is one of our own, or none at all.

    Raises:
        UserError: several packages bring it, or it is one of our own too.
    """
    own = _FOLDER / f"{mechanism}.py"
    return plugins.chosen("defenses", mechanism, own if mechanism in _own_names() else None)


def require(mechanism: str) -> None:
    """Refuse a name that is no mechanism's; nothing is imported.

    Raises:
        UserError: with the nearest name; or what is wrong with the package that brings it.
    """
    brought = plugin(mechanism)
    if brought is None and mechanism not in _own_names():
        known = names()
        near = nearest(mechanism, known)
        raise UserError(f"unknown defense mechanism {mechanism!r}{near} (there are: {', '.join(known)}; see {_FOLDER})")
    if brought is not None:
        _require_source(brought)


def module_name(mechanism: str) -> str:
    """The dotted name of the mechanism's module."""
    brought = plugin(mechanism)
    return f"{_PACKAGE}.{mechanism}" if brought is None else brought.target


def module(mechanism: str) -> ModuleType:
    """The mechanism's module, imported.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    require(mechanism)
    brought = plugin(mechanism)
    if brought is None:
        return importlib.import_module(f"{_PACKAGE}.{mechanism}")
    imported = plugins.load(brought)
    if not hasattr(imported, "load"):
        raise UserError(f"defense mechanism {mechanism!r} of {brought} lacks the function `load`")
    return imported


def constants(mechanism: str) -> dict[str, ast.expr]:
    """What the mechanism's module assigns to plain names, unevaluated."""
    source = fingerprint.source_file(module_name(mechanism))
    if source is None:
        raise ValueError(f"mechanism {mechanism!r} has no source")
    assigned: dict[str, ast.expr] = {}
    for node in _parsed(source).body:
        if isinstance(node, ast.Assign):
            assigned |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            assigned[node.target.id] = node.value
    return assigned


def literal(mechanism: str, name: str, default: Any) -> Any:
    """What the mechanism's module assigns to ``name``, a plain value; ``default`` where it does not.

    Raises:
        UserError: unknown mechanism, or no plain value.
    """
    require(mechanism)
    declared = constants(mechanism).get(name)
    if declared is None:
        return default
    try:
        return ast.literal_eval(declared)
    except ValueError:
        raise UserError(
            f"defense mechanism {mechanism!r}: {name} is read without importing the module: write a plain value there"
        ) from None


@cache
def _own_names() -> frozenset[str]:
    return frozenset(path.stem for path in _FOLDER.glob("[a-z]*.py") if "load" in _functions(path))


def _require_source(brought: plugins.Plugin) -> None:
    """Refuse a module whose source is not there to be read.

    Raises:
        UserError: which package's, and why.
    """
    said = f"defense mechanism {brought.name!r} of {brought} cannot be imported"
    source = fingerprint.source_file(brought.target)
    if source is None:
        raise UserError(f"{said}: there is no such module, or no Python source of it")
    try:
        _parsed(source)
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"{said}: {source}: {type(error).__name__}: {error}") from None


@cache
def _parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def _functions(source: Path) -> set[str]:
    return {node.name for node in _parsed(source).body if isinstance(node, ast.FunctionDef)}
