"""Find a card by its name and read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from harness.cards.backbone import BackboneCard
from harness.cards.base import FOLDERS, Card
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.cards.report import ReportCard
from harness.cards.yaml_file import parse, show
from harness.errors import UserError, nearest

KINDS: tuple[type[Card], ...] = (
    BackboneCard, DefenseCard, RegeneratorCard, JudgeCard, PolicyCard, ProfileCard, BenchmarkCard, ReportCard,
)  # fmt: skip

AnyCard = TypeVar("AnyCard", bound=Card)


def load_card(kind: type[AnyCard], name: str, roots: Sequence[Path]) -> AnyCard:
    """The card called ``name``; of several roots the first that has it wins.

    Args:
        kind: class of the card, such as ``BackboneCard``.
        name: the card's file stem.
        roots: folders that hold cards, see ``card_roots``.

    Raises:
        UserError: for an unknown name (with the nearest) or a malformed card (with file and line).
    """
    for root in roots:
        path = _files(kind, root).get(name)
        if path is not None:
            return parse(kind, path, root)
    known = card_names(kind, roots)
    where = " and ".join(show(root / FOLDERS[kind.KIND]) for root in roots)
    raise UserError(
        f"unknown {kind.KIND} {name!r}{nearest(name, known)} (there are: {', '.join(known) or 'none'}; see {where})"
    )


def load_cards(kind: type[AnyCard], roots: Sequence[Path]) -> list[AnyCard]:
    """Every card of one kind, by name."""
    return [load_card(kind, name, roots) for name in card_names(kind, roots)]


def card_names(kind: type[Card], roots: Sequence[Path]) -> list[str]:
    """The sorted names of the cards of one kind, over all roots."""
    return sorted({name for root in roots for name in _files(kind, root)})


def _files(kind: type[Card], root: Path) -> dict[str, Path]:
    """Name to file of one kind within one root."""
    files: dict[str, Path] = {}
    for path in sorted((root / FOLDERS[kind.KIND]).rglob("*.y*ml")):
        if path.suffix not in (".yaml", ".yml"):
            continue
        name = path.stem
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == "all":
            raise UserError(f"{show(path)}: a card's name is made of a-z, 0-9, '.', '_' and '-', and is not 'all'")
        if name in files:
            raise UserError(f"two cards are called {name!r}: {show(files[name])} and {show(path)}")
        files[name] = path
    return files
