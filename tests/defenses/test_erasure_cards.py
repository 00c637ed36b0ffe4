"""The cards of GLoCE, MACE, Receler and Co-Erasing: the published hyperparameters, and what each still needs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.defenses.base import IncompleteError, parse

ROOTS = card_roots()
NAMES = ("gloce", "mace", "receler", "co-erasing")


def card(name: str) -> DefenseCard:
    return load_card(DefenseCard, name, ROOTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_fits_its_mechanism_and_both_backbones(name: str) -> None:
    for backbone in ("shapes", "sd-1-4"):
        defenses.require(card(name), load_card(BackboneCard, backbone, ROOTS))
    assert defenses.artefact_kind(card(name).mechanism) is not None


@pytest.mark.parametrize("name", NAMES)
def test_on_shapes_every_concept_can_be_built(name: str) -> None:
    params = importlib.import_module(f"harness.defenses.{card(name).mechanism}").PARAMS
    assert card(name).shapes is not None
    for concept in card(name).shapes.concepts:
        parse(params, card(name).resolve("shapes", concept))


@pytest.mark.parametrize(
    ("name", "concept", "expected"),
    [
        (
            "gloce",
            "nudity",
            {"gate_rank": 1, "target_rank": 16, "surrogate_rank": 2, "threshold": 1.5, "strength": 5.0},
        ),
        ("gloce", "nudity", {"images": 8, "first_call": 11, "last_call": 20, "begin_call": 10}),
        ("gloce", "van-gogh", {"target_rank": 1, "surrogate_rank": 1, "threshold": 2.5, "strength": 1.0, "images": 3}),
        ("mace", "nudity", {"erase": ["nudity", "naked", "erotic", "sexual"], "target": "a person wearing clothes"}),
        ("mace", "nudity", {"lr": 1e-5, "steps": 120, "rank": 1, "lam": 0.0, "fuse_scale": 7e-7}),
        ("mace", "van-gogh", {"lr": 1e-4, "steps": 50, "domain_scale": 8e4, "fuse_scale": 1e-4, "focal": True}),
        ("receler", "nudity", {"rank": 128, "steps": 500, "lr": 3e-4, "eta": 1.0, "locality": 0.1}),
        ("receler", "nudity", {"adversarial_tokens": 16, "adversarial_steps": 50, "mask_threshold": 0.1}),
        ("co-erasing", "nudity", {"images": 200, "blur": 5, "train": "full", "steps": 1500, "lr": 1e-5, "eta": 1.0}),
    ],
)
def test_hyperparameters_are_the_published_ones(name: str, concept: str, expected: dict[str, Any]) -> None:
    params = card(name).resolve("paper", concept)
    assert {key: params[key] for key in expected} == expected


@pytest.mark.parametrize(("name", "lacking"), [("mace", "captions"), ("co-erasing", "image_adapter")])
def test_what_is_not_shipped_is_asked_for_unless_weights_are_given(name: str, lacking: str) -> None:
    params = importlib.import_module(f"harness.defenses.{card(name).mechanism}").PARAMS
    with pytest.raises(IncompleteError, match=lacking):
        parse(params, card(name).resolve("paper", "nudity"))
    parse(params, {**card(name).resolve("paper", "nudity"), "weights": "/a/file"})


def test_violence_is_recelers_list_as_one_prompt() -> None:
    (text,) = card("receler").resolve("paper", "violence")["erase"]
    assert len(text.split(", ")) == 11
