"""Where files that cards name lie: in the import package, beside a card, or on a path of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]  # harness/, the import package
_NAMES_PATHS = ("source", "weights")  # keys of a card whose value may be a path
_ONLY_PATHS = "settings"  # of scorers: any value below that begins as a path does


def locate(source: str, root: Path) -> Path:
    """The file or folder that a ``package:`` source or a path names.

    Args:
        source: ``package:harness/...`` lies in the import package; ``package:...`` beside the card's own folder; a path
            lies where it says.
        root: the card's root.
    """
    if is_path(source):
        return Path(source).expanduser()
    first, _, rest = source.removeprefix("package:").partition("/")
    return PACKAGE / rest if first == "harness" else root / first / rest


def is_path(source: str) -> bool:
    """Whether a source is a path of the user's own; a hub id (``owner/name``) begins with none of these."""
    return source in (".", "..") or source.startswith(("/", "./", "../", "~"))


def is_local(source: str) -> bool:
    """Whether a source lies in the package, beside a card or on a path, and not on the hub."""
    return source.startswith("package:") or is_path(source)


def absolute(source: str, folder: Path) -> str:
    """``source`` made absolute, where it is a path: ``~`` is the user's home, all else is seen from ``folder``.

    Links stay as they are, since what a file is shows in its name.
    """
    return os.path.abspath(folder / Path(source).expanduser()) if is_path(source) else source


def with_absolute_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A card's values with every path in them seen from ``folder``, where the card lies."""
    return {key: _absolute(key, value, folder) for key, value in values.items()}


def _absolute(key: str, value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        inside = _ONLY_PATHS if key == _ONLY_PATHS else ""
        return {name: _absolute(inside or str(name), one, folder) for name, one in value.items()}
    named = key in (*_NAMES_PATHS, _ONLY_PATHS)
    return absolute(value, folder) if named and isinstance(value, str) else value


def placeless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a card without the places of the user's own weights, which are known by what their files hold."""
    plain = {key: placeless(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    source = plain.get("source")
    return plain | {"source": "local"} if isinstance(source, str) and is_path(source) else plain
