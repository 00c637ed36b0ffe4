"""Our own defenses and scorers keep the contract that strangers' are held to."""

from __future__ import annotations

import pytest

from harness import scorers
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_cards
from harness.defenses import declared
from harness.errors import UserError
from harness.pipeline.conformance.run import findings, trials
from harness.pipeline.prerequisites import missing_of_scorer

ROOTS = card_roots()
CARDS = {card.name: card for card in load_cards(DefenseCard, ROOTS)}
TRAINED = sorted(name for name, card in CARDS.items() if declared(card.mechanism, "QUICK") is not None)
ON_PUSH = ("sld-max", "uce")  # one that steers, one in closed form; the night takes all
NIGHTLY = ("none", "rece", "sd-np", "safree")
HERE = ("shapes_oracle", "shapes_classifier", "shapes_kept", "ssim")  # and quick
NEEDED = {"sld-medium", "sld-strong"}  # the same mechanism as sld-max


def broken(name: str) -> list[str]:
    """The rules that a defense or scorer of ours breaks."""
    (trial,) = [t for t in trials(name, ROOTS) if t.provider is None][:1]
    return [f"{f.rule}: {f.detail}" for f in findings(trial, ROOTS) if f.outcome == "fail"]


@pytest.mark.parametrize("name", [*ON_PUSH, *(pytest.param(name, marks=pytest.mark.slow) for name in NIGHTLY)])
def test_a_training_free_or_closed_form_defense_keeps_the_contract(name: str) -> None:
    assert broken(name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED, "rece+saferedir"])
def test_a_trained_defense_keeps_the_contract(name: str) -> None:
    assert broken(name) == []


def test_no_defense_of_ours_is_left_out() -> None:
    assert {*ON_PUSH, *NIGHTLY, *TRAINED, *NEEDED} == set(CARDS)


@pytest.mark.parametrize("stem", HERE)
def test_a_scorer_keeps_the_contract(stem: str) -> None:
    assert broken(stem) == []


@pytest.mark.slow
@pytest.mark.parametrize("stem", sorted(set(scorers.names()) - set(HERE)))
def test_every_scorer_that_can_run_here_keeps_the_contract(stem: str) -> None:
    try:
        lacking = missing_of_scorer(stem, {})
    except UserError as error:
        lacking = [str(error)]
    if lacking:
        pytest.skip(lacking[0])
    assert broken(stem) == []


def test_what_a_rule_says_nothing_of_has_a_reason() -> None:
    (trial,) = trials("ssim", ROOTS)
    reasons = {f.rule: f.detail for f in findings(trial, ROOTS) if f.outcome == "does not apply"}
    assert set(reasons) == {"detaching", "zero", "guard"}
    assert all(reasons.values())


@pytest.mark.parametrize(("name", "near"), [("ucee", "uce"), ("nudnet", "nudenet")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no defense or scorer '{name}'; did you mean '{near}'"):
        trials(name, ROOTS)


def test_a_concept_that_the_card_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="'uce' is not declared for concept 'picasso'"):
        trials("uce", ROOTS, "picasso")


def test_a_regenerator_is_said_to_be_made_of_our_steps() -> None:
    with pytest.raises(UserError, match="'resafe:alpha=0.5' is a regenerator, a card made of our own steps"):
        trials("resafe:alpha=0.5", ROOTS)
