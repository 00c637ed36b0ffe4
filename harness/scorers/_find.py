"""Find a scorer's module by its name: one of this package, or one that an installed package brings."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from harness.cards import plugins
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest

_CONTRACT = ("COLUMNS", "load", "weights", "LIBRARIES", "MICRO_BATCH", "PAIR")
_FOLDER = Path(__file__).parent
_PACKAGE = __name__.rpartition(".")[0]


def names() -> list[str]:
    """Every scorer that can be used, less those of installed packages of which ``faults`` says why not."""
    return sorted({*_own_names(), *plugins.names("scorers")} - set(faults()))


def faults() -> dict[str, str]:
    """Why scorers that installed packages bring cannot be used, by name."""
    reasons = {}
    for stem in plugins.names("scorers"):
        try:
            module(stem)
        except UserError as error:
            reasons[stem] = str(error)
    return reasons


def plugin(stem: str) -> plugins.Plugin | None:
    """What brings the scorer; None where it is one of our own, or none at all.

    Raises:
        UserError: several packages bring it, or it is one of our own too.
    """
    own = _FOLDER / f"{stem}.py"
    return plugins.chosen("scorers", stem, own if own.is_file() else None)


def module(stem: str) -> ModuleType:
    """The module of a scorer, imported.

    Raises:
        UserError: there is none (with the nearest name), it is brought twice, or it cannot be imported.
    """
    brought = plugin(stem)
    if brought is not None:
        imported = plugins.load(brought)
        lacking = [name for name in _CONTRACT if not hasattr(imported, name)]
        if lacking:
            raise UserError(f"scorer {stem!r} of {brought} lacks {', '.join(lacking)}")
        return imported
    if stem.isidentifier() and importlib.util.find_spec(f"{_PACKAGE}.{stem}"):
        own = importlib.import_module(f"{_PACKAGE}.{stem}")
        if hasattr(own, "COLUMNS"):
            return own
    known = names()
    raise UserError(
        f"unknown scorer {stem!r}{nearest(stem, known)} (there are: {', '.join(known)}; see {show(_FOLDER)})"
    )


def _own_names() -> list[str]:
    stems = (entry.name for entry in pkgutil.iter_modules([str(_FOLDER)]) if not entry.name.startswith("_"))
    return [stem for stem in stems if hasattr(importlib.import_module(f"{_PACKAGE}.{stem}"), "COLUMNS")]
