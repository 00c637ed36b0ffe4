"""What a person asked for: defenses, benchmarks, profile, and which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.base import Card, card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard, DefenseStack
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.defenses import stacked
from harness.errors import UserError
from harness.models import own_backbone
from harness.pipeline import scorer_files
from harness.regenerators import variants
from harness.regenerators.variants import Regenerator

BASELINE = "none"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person chose on the command line."""

    defenses: tuple[str, ...]
    benches: tuple[str, ...]
    profile: str = "paper"
    backbone: str | None = None  # the profile's
    concept: str | None = None  # the benchmark's; what the defense and the regenerator remove
    regens: tuple[str, ...] | None = None  # null: the profile's
    limit: int | None = None
    ids: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # only prompts about any of these
    seed: int | None = None  # replaces every row's
    baseline: bool = True  # `none` beside, for comparison
    extra_scorers: tuple[str, ...] = ()
    accept_change: tuple[str, ...] = ()  # of "code", "libraries": stored results of others are taken, and stamped
    images: str | None = None  # images that are taken as they are, instead of defenses over benchmarks


class Chosen(NamedTuple):
    """The cards that a request names."""

    profile: ProfileCard
    backbone: BackboneCard
    benches: list[BenchmarkCard]
    defenses: list[DefenseStack]
    regens: list[Regenerator]
    undefended: DefenseStack
    named: frozenset[str]  # names of the defenses that were asked for one by one, not by "all"


def choose(request: Request, roots: Sequence[Path], data: Path | None = None) -> Chosen:
    """Load every card that ``request`` names; "all" means benchmarks that the profile has an edition of, and defenses
    that work with the backbone; of their pairs those for which the defense is declared (``Plan.left_out``).

    Args:
        request: the names.
        roots: folders that hold cards.
        data: folder where ``harness fetch`` puts files: those of scorers complete the profile.

    Raises:
        UserError: an unknown name or a malformed card.
    """
    profile = scorer_files.completed(load_card(ProfileCard, request.profile, roots), data)
    backbone = own_backbone.backbone(request.backbone or profile.backbone, roots)
    asked_for = [] if request.images else _names(request.benches, BenchmarkCard, roots)
    benches = [load_card(BenchmarkCard, b, roots) for b in asked_for]
    if "all" in request.benches:
        benches = [b for b in benches if profile.edition in b.editions or b.name in request.benches]
    names = [] if request.images else _names(request.defenses, DefenseCard, roots)
    if request.baseline and not request.images and BASELINE not in names:
        names = [BASELINE, *names]
    methods = list({m.name: m for m in (overrides.defense(d, roots) for d in names)}.values())
    named = frozenset(overrides.defense(d, roots).name for d in request.defenses if d != "all")
    if "all" in request.defenses:
        methods = [m for m in methods if stacked.works(m, backbone) or m.name in named]
    asked = profile.regenerators if request.regens is None else request.regens
    return Chosen(
        profile,
        backbone,
        benches,
        methods,
        variants.choose(asked, profile.edition, roots),
        overrides.defense(BASELINE, roots),
        named,
    )


def _names(asked: Sequence[str], kind: type[Card], roots: Sequence[Path]) -> list[str]:
    """The names asked for, "all" spelt out, each once."""
    if not asked:
        raise UserError(f"no {kind.KIND} chosen (there are: {', '.join(card_names(kind, roots))})")
    names = [n for a in asked for n in (card_names(kind, roots) if a == "all" else [a])]
    return list(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a run."""

    store: Path
    out: Path
    data: Path
    cards: Path | None = None

    @property
    def roots(self) -> list[Path]:
        return card_roots(self.cards)
