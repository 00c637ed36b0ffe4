"""What a card says of published weights: where they come from, which files, under which licence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.cards.places import PACKAGE, is_local, is_path, locate
from harness.errors import UserError

HUB = "hub:"  # begins one file of a repository of the Hugging Face hub
_HUB_FILE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})/(?P<path>\S+)")


@dataclass(frozen=True, kw_only=True)
class WeightsRef:
    """Published weights of one model; ``harness.models.weights`` looks for them, fetches and identifies them."""

    role: str  # as messages call it: "backbone", "judge", "clip", "defense", "regenerator", "scorer"
    name: str  # what `harness fetch weights` takes
    source: str  # a hub id, "package:...", or an absolute path of the user's own
    licence: str  # as its owner names it
    revision: str | None = None  # commit of the hub's repository; None: the one that its branch main is at
    # Of a hub repository, the files that are needed. A name with `*` is a pattern that may match nothing; of names with
    # `|` between them one is needed, the first that there is.
    files: tuple[str, ...] = ()
    gated: bool = False  # whether its owner asks for consent first
    root: Path = PACKAGE  # of the card, for "package:" sources that do not start with harness

    @property
    def is_packaged(self) -> bool:
        """Whether the weights come with the package, or lie beside the card."""
        return self.source.startswith("package:")

    @property
    def is_own(self) -> bool:
        """Whether the weights lie on a path that the user named."""
        return is_path(self.source)

    @property
    def is_local(self) -> bool:
        """Whether the weights are packaged or the user's own, not of the hub."""
        return is_local(self.source)

    @property
    def place(self) -> Path:
        """Where packaged weights and the user's own lie: a folder, or of the user's own perhaps one file."""
        return locate(self.source, self.root)

    @property
    def required_files(self) -> tuple[str, ...]:
        """The files that must be there, each perhaps one of several (``a|b``)."""
        return tuple(name for name in self.files if "*" not in name)

    def __str__(self) -> str:
        """The role and name, as messages call the weights."""
        return f"{self.role} {self.name}"


class Published(Protocol):
    """What a card, or a section of one, says of the weights that it names."""

    @property
    def source(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def licence(self) -> str: ...
    @property
    def gated(self) -> bool: ...


def weights_of(card: Published, role: str, name: str, root: Path) -> WeightsRef:
    """The reference to the weights that a card, or a section of one, names.

    Args:
        card: says source, revision, files, licence and consent.
        role: as messages call the weights.
        name: what `harness fetch weights` takes.
        root: of the card, for "package:" sources.
    """
    return WeightsRef(
        role=role, name=name, source=card.source, revision=card.revision, files=card.files, licence=card.licence,
        gated=card.gated, root=root,
    )  # fmt: skip


def parse_hub_file(text: str) -> tuple[str, str, str]:
    """Repository, commit and path of ``hub:OWNER/REPO@COMMIT/PATH``.

    Raises:
        UserError: it is not of that form.
    """
    match = _HUB_FILE.fullmatch(text)
    if match is None:
        raise UserError(
            f"weights {text!r}: a hub id is hub:OWNER/REPO@COMMIT/PATH, the commit in 40 hexadecimal digits"
        )
    return match["repo"], match["commit"], match["path"]


def hub_files(params: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Repository, commit and path of every hub file that a defense's parameters name as ``weights``, at any depth.

    Raises:
        UserError: a hub id without its commit.
    """
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from hub_files(value)
        elif key == "weights" and isinstance(value, str) and value.startswith(HUB):
            yield parse_hub_file(value)
