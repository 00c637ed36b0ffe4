"""Where a scorer's weights lie: a file, a folder, ``package:harness/...``, or a revision of a hub's repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.cards.places import PACKAGE
from harness.errors import UserError
from harness.models import intact
from harness.scorers import options

_SUFFIXES = (".json", ".safetensors", ".bin", ".txt")


def file(stem: str, name: str, given: object, how: str) -> Path:
    """The file that a parameter names.

    Args:
        stem: of the scorer.
        name: of the parameter.
        given: its value.
        how: where such a file comes from, for the message.

    Raises:
        UserError: there is none.
    """
    if not given:
        raise UserError(f"scorer {stem!r} needs the parameter {name!r}, a path; {how}")
    path = Path(str(given)).expanduser()
    if not path.is_file():
        raise UserError(f"scorer {stem!r}: no file {str(path)!r} ({name}); {how}")
    intact.require(path, f"scorer {stem!r}: {name}")
    return path


def cached(*names: str) -> Path:
    """The first of these files that lies where torch keeps what it downloads, else where the first would.

    As ``torch.hub.get_dir()`` says, without importing torch.
    """
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    folder = Path(home).expanduser() / "hub" / "checkpoints"
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


class Model(NamedTuple):
    """A model that transformers loads."""

    source: str  # a folder or a hub id
    revision: str | None  # commit of the hub's repository; None for a folder
    files: list[Path]  # the folder's; none for a hub id, which the revision identifies


def model(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> Model:
    """The model that the parameters ``source`` and ``revision`` name.

    Args:
        stem: of the scorer.
        params: as given. ``source`` is a folder, ``package:harness/...``, or a hub id; ``revision`` a commit, which a
            hub id needs, since nothing else identifies its weights.
        defaults: of the scorer; its revision is of its source and of no other.

    Raises:
        UserError: an unknown parameter, no such folder, or a hub id without a revision.
    """
    chosen = options(stem, params, defaults)
    given = str(chosen["source"])
    inside = given.startswith("package:harness/")
    folder = PACKAGE / given.removeprefix("package:harness/") if inside else Path(given).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"scorer {stem!r}: no file {str(folder / 'config.json')!r}")
        files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
        for path in files:
            intact.require(path, f"scorer {stem!r}:")
        return Model(str(folder), None, files)
    if given.startswith(("package:", "/", ".", "~")) or given.count("/") != 1:
        raise UserError(f"scorer {stem!r}: no folder {str(folder)!r}, and {given!r} is no hub id (owner/name)")
    revision = chosen["revision"] if given == defaults["source"] else params.get("revision")
    if not revision:
        raise UserError(f"scorer {stem!r}: {given!r} is taken from the hub; give its revision (a commit) too")
    return Model(given, str(revision), [])


def micro_batch(stem: str, given: object) -> int:
    """The number of images that a model sees at once.

    Raises:
        UserError: it is not a whole number of 1 or more.
    """
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"scorer {stem!r}: micro_batch is {given!r}, not a whole number of 1 or more")
    return given
