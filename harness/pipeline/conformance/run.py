"""Find what a name stands for, and hold it to its contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import defenses, scorers
from harness.cards import overrides
from harness.cards.defense import DefenseCard, DefenseStack
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.defenses import stacked as stacks
from harness.errors import UserError, nearest
from harness.pipeline.conformance import scorers as image_rules
from harness.pipeline.conformance.rules import Finding, Rule, Subject, tried
from harness.pipeline.stages.images import one_thread

PROFILE = "shapes"
_SAMPLING = "steps=6:micro_batch=2"  # few steps, and so few images at once that a few rows fill several batches


class Trial(NamedTuple):
    """Something that can be held to a contract."""

    kind: str  # "defense" or "scorer"
    name: str
    provider: str | None  # the package that brings it; None: it is ours
    concept: str | None  # what a defense removes


def trials(name: str, roots: Sequence[Path], concept: str | None = None) -> list[Trial]:
    """What goes by a name: a defense (also with other parameters, or a stack), a scorer, or both.

    Args:
        name: as on the command line.
        roots: folders of cards.
        concept: what a defense is to remove; None: nudity, or the first that its card declares.

    Raises:
        UserError: nothing goes by it (with the nearest name), or the defense is not declared for ``concept``.
    """
    cards, stems = card_names(DefenseCard, roots), scorers.names()
    named: list[Trial] = []
    if name.partition("+")[0].partition(":")[0] in cards:
        stack = overrides.defense(name, roots)
        brought = [plugin.provider for card in stack.layers if (plugin := defenses.plugin(card.mechanism)) is not None]
        named.append(Trial("defense", name, ", ".join(brought) or None, _concept(stack, concept)))
    if name in stems or (not named and scorers.plugin(name) is not None):
        scorers.columns(name)  # says what is wrong with a stranger's
        plugin = scorers.plugin(name)
        named.append(Trial("scorer", name, plugin.provider if plugin is not None else None, None))
    if not named and name.partition(":")[0] in card_names(RegeneratorCard, roots):
        raise UserError(
            f"{name!r} is a regenerator, a card made of our own steps: it brings no code that a contract is about; "
            "conformance is of defenses and scorers"
        )
    if not named:
        known = [*cards, *stems]
        raise UserError(f"no defense or scorer {name!r}{nearest(name, known)} (there are: {', '.join(known)})")
    return named


def findings(trial: Trial, roots: Sequence[Path]) -> Iterator[Finding]:
    """The finding of each rule, as it comes.

    Raises:
        UserError: it cannot be tried at all: weights that are not there, a card that its mechanism refuses.
    """
    one_thread("cpu")
    yield from tried(*subject_of(trial, roots))


def subject_of(trial: Trial, roots: Sequence[Path]) -> tuple[Sequence[Rule[Any]], Subject]:
    """The rules, and what they are tried on.

    Raises:
        UserError: it cannot be tried at all: weights that are not there, a card that its mechanism refuses.
    """
    profile = load_card(ProfileCard, PROFILE, roots)
    if trial.kind == "scorer":
        params = profile.settings.get(trial.name, {})
        subject = image_rules.ScorerSubject(trial.name, params)
        _ = subject.used  # what is not on this machine is no departure from the contract
        return image_rules.RULES, subject
    from harness.pipeline.conformance import defenses as drawing_rules  # imports torch

    assert trial.concept is not None
    backbone = overrides.backbone(f"{profile.backbone}:{_SAMPLING}", roots)
    stack = overrides.defense(trial.name, roots)
    stacks.require(stack, backbone)
    parts = [
        drawing_rules.Part(card.mechanism, {**params, **_quick(card), **card.changes, "concept": trial.concept})
        for card, params in zip(stack.layers, stack.resolve(profile.edition, trial.concept), strict=True)
    ]
    return drawing_rules.RULES, drawing_rules.DefenseSubject(backbone, parts, trial.concept)


def _quick(card: DefenseCard) -> dict[str, object]:
    """Parameters with which the card's mechanism is built in seconds."""
    return dict(defenses.declared(card.mechanism, "QUICK") or {})


def _concept(stack: DefenseStack, asked: str | None) -> str:
    """What the defense removes while it is tried."""
    edition = PROFILE
    if asked is not None:
        stack.resolve(edition, asked)  # refuses what it is not declared for
        return asked
    declared = [c for card in stack.layers for c in card.concept_names(edition)]
    return next((c for c in ("nudity", *declared) if stack.declares(edition, c)), "nudity")
