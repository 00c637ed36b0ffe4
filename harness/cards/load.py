"""Find a card by its name and read it."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from harness.cards import plugins
from harness.cards.backbone import BackboneCard
from harness.cards.base import FOLDERS, Card, own_root
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.literature import published
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.cards.report import ReportCard
from harness.cards.sweep import SweepCard
from harness.cards.yaml_file import parse, show
from harness.errors import UserError, nearest

KINDS: tuple[type[Card], ...] = (
    BackboneCard, DefenseCard, RegeneratorCard, JudgeCard, PolicyCard, ProfileCard, SweepCard, BenchmarkCard,
    ReportCard,
)  # fmt: skip

AnyCard = TypeVar("AnyCard", bound=Card)


def load_card(kind: type[AnyCard], name: str, roots: Sequence[Path]) -> AnyCard:
    """The card called ``name``; a folder that was asked for (``--cards``) wins over what is installed.

    Args:
        kind: class of the card, such as ``BackboneCard``.
        name: the card's file stem.
        roots: folders that hold cards, see ``card_roots``.

    Raises:
        UserError: for an unknown name (with the nearest), a malformed card (with file and line), or a name that an
            installed package brings and another one, or we, have too.
    """
    brought = plugins.card_folders()
    places = {root: path for root in roots if (path := _readable(kind, root, brought).get(name)) is not None}
    if places:
        root = next(iter(places))
        _refuse_shared(kind, name, root, places, brought)
        return parse(kind, places[root], root)
    known = card_names(kind, roots)
    where = " and ".join(show(root / FOLDERS[kind.KIND]) for root in roots)
    said = f"unknown {kind.KIND} {name!r}{_meant(kind, name, roots)}"
    raise UserError(f"{said} (there are: {', '.join(known) or 'none'}; see {where})")


def _meant(kind: type[Card], name: str, roots: Sequence[Path]) -> str:
    """What an unknown name may mean: a published defense without a card, a card of another kind, or the nearest."""
    if kind is DefenseCard and (title := published(name)):
        return f": {title} is a published defense that has no card here; CONTRIBUTING.md shows how to add one"
    others = [other.KIND for other in KINDS if other is not kind and name in card_names(other, roots)]
    return f", which is a {others[0]}" if others else nearest(name, card_names(kind, roots))


def load_cards(kind: type[AnyCard], roots: Sequence[Path]) -> list[AnyCard]:
    """Every card of one kind, by name, less those of installed packages that cannot be used (``plugin_faults``)."""
    lost = plugin_faults(kind, roots)
    return [load_card(kind, name, roots) for name in card_names(kind, roots) if name not in lost]


def card_names(kind: type[Card], roots: Sequence[Path]) -> list[str]:
    """The sorted names of the cards of one kind, over all roots."""
    brought = plugins.card_folders()
    return sorted({name for root in roots for name in _readable(kind, root, brought)})


def plugin_faults(kind: type[Card], roots: Sequence[Path]) -> dict[str, str]:
    """Why cards that installed packages bring cannot be used, by the card's name, or the folder's if that is at fault.

    A card of our own or of ``--cards`` that is malformed is no concern of this.
    """
    faults = {}
    for folder in (root for root in plugins.card_folders() if root in roots):
        try:
            names = _files(kind, folder)
        except UserError as error:
            faults[str(folder)] = str(error)
            continue
        for name in names:
            try:
                load_card(kind, name, roots)
            except UserError as error:
                faults[name] = str(error)
    return faults


def _readable(kind: type[Card], root: Path, brought: Container[Path]) -> dict[str, Path]:
    """``_files``; nothing of an installed package whose folder of this kind cannot be read."""
    try:
        return _files(kind, root)
    except UserError:
        if root in brought:  # a stranger's mistake hinders nothing else; `harness list` says it
            return {}
        raise


def _refuse_shared(
    kind: type[Card], name: str, root: Path, places: Mapping[Path, Path], brought: Mapping[Path, plugins.Plugin]
) -> None:
    """Refuse a card of what is installed whose name an installed package has too."""
    ours = own_root()
    claims = [place for place in places if place in brought or place == ours]
    if root not in claims or len(claims) < 2:
        return
    said = [
        f"{brought[place].provider if place in brought else 'harness itself'} ({places[place]})" for place in claims
    ]
    raise UserError(f"{kind.KIND} {name!r} is brought by {' and by '.join(said)}: uninstall one, or rename it there")


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
