"""Plugins: what other installed packages bring, found by their Python entry points.

    [project.entry-points."harness.defenses"]
    gentle = "my_package.gentle"     # a mechanism: a module by the contract of `harness.defenses`
    [project.entry-points."harness.scorers"]
    contrast = "my_package.contrast" # a scorer: a module by the contract of `harness.scorers`
    [project.entry-points."harness.cards"]
    my_package = "my_package"        # a package, or a folder within one, that holds pipelines/, datasets/ or reports/

Finding them imports nothing of theirs. A name that two packages bring, or that is one of our own, is refused where it
is used; a package that cannot be imported is named, and hinders nothing that does not use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from harness.errors import UserError

Group = Literal["defenses", "scorers", "cards"]
PREFIX = "harness."  # of an entry point's group
_NOUN: Mapping[Group, str] = {"defenses": "defense mechanism", "scorers": "scorer", "cards": "card folder"}
_STEM = re.compile(r"[a-z][a-z0-9_]*")  # of a module that a card or a column may name
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed package."""

    group: Group
    name: str  # as a card or the command line says it
    target: str  # dotted name of a module, or of a folder of cards
    package: str  # the distribution that brings it
    version: str
    location: Path  # folder that the distribution is installed in

    @property
    def provider(self) -> str:
        """Package and version."""
        return f"{self.package} {self.version}"

    @property
    def top(self) -> str:
        """The import package that the target lies in."""
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.provider} in {self.location} (as {self.target})"

    def folder(self) -> Path | None:
        """The target as a folder of an import package, found without importing it; None where there is none."""
        spec = importlib.util.find_spec(self.top)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            folder = Path(place).joinpath(*self.target.split(".")[1:])
            if folder.is_dir():
                return folder.resolve()
        return None


def names(group: Group) -> list[str]:
    """Every name that packages bring, sorted; also of what cannot be used."""
    return sorted(_installed(group))


def chosen(group: Group, name: str, own: Path | None = None) -> Plugin | None:
    """The plugin that goes by ``name``; None where no package brings one.

    Args:
        group: of what.
        name: as a card or the command line says it.
        own: file of our own that goes by it.

    Raises:
        UserError: several packages bring it, or it is one of our own, or the entry point is malformed.
    """
    brought = _installed(group).get(name, ())
    if not brought:
        return None
    noun = _NOUN[group]
    claims = [*([f"harness itself ({own})"] if own is not None else []), *map(str, brought)]
    if len(claims) > 1:
        raise UserError(f"{noun} {name!r} is brought by {' and by '.join(claims)}: uninstall one, or rename it there")
    (plugin,) = brought
    if group != "cards" and not _STEM.fullmatch(name):
        raise UserError(f"{noun} {name!r} of {plugin}: its name is made of a-z, 0-9 and '_', and begins with a letter")
    if not _DOTTED.fullmatch(plugin.target):
        raise UserError(f"{noun} {name!r} of {plugin}: its entry point names no module")
    return plugin


def load(plugin: Plugin) -> ModuleType:
    """Import a plugin's module.

    Raises:
        UserError: it cannot be imported, whatever the reason; names package, place and reason.
    """
    try:
        return importlib.import_module(plugin.target)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{_NOUN[plugin.group]} {plugin.name!r} of {plugin} cannot be imported: {type(error).__name__}: {reason}"
        ) from error


def card_folders() -> dict[Path, Plugin]:
    """Every folder of cards that packages bring, by package; those that cannot be used are left out."""
    folders = {}
    for name in names("cards"):
        try:
            plugin = chosen("cards", name)
            folder = plugin.folder() if plugin is not None else None
        except UserError:  # `card_folder_faults` says so
            continue
        if plugin is not None and folder is not None:
            folders[folder] = plugin
    return folders


def card_folder_faults() -> list[str]:
    """What is wrong with the entry points of card folders, a line each."""
    faults = []
    for name in names("cards"):
        try:
            plugin = chosen("cards", name)
        except UserError as error:
            faults.append(str(error))
        else:
            if plugin is not None and plugin.folder() is None:
                faults.append(f"card folder {name!r} of {plugin}: there is no such folder")
    return faults


def _installed(group: Group) -> Mapping[str, tuple[Plugin, ...]]:
    return _scanned(tuple(sys.path)).get(group, {})


@cache
def _scanned(path: tuple[str, ...]) -> dict[Group, dict[str, tuple[Plugin, ...]]]:
    """Plugins by group and name, of all distributions on ``path``: Python's own search path."""
    plugins: dict[Group, dict[str, tuple[Plugin, ...]]] = {group: {} for group in _NOUN}
    points = metadata.entry_points()
    for group in _NOUN:
        for point in points.select(group=f"{PREFIX}{group}"):
            distribution = point.dist
            if distribution is None:
                continue
            plugin = Plugin(
                group=group,
                name=point.name,
                target=point.value.strip(),
                package=str(distribution.metadata["Name"]),
                version=str(distribution.version),
                location=Path(str(distribution.locate_file(""))),
            )
            plugins[group][plugin.name] = (*plugins[group].get(plugin.name, ()), plugin)
    return plugins
