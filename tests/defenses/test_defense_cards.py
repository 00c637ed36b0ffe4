"""The shipped cards: each resolves to parameters that its mechanism takes, in both editions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from painter import Painter

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.errors import UserError

ROOTS = card_roots()
NAMES = ("none", "sd-np", "sld-medium", "sld-strong", "sld-max", "uce", "rece")
TRAINED = {  # and what makes their builds short
    "esd": {"steps": 1, "sampler_steps": 2, "batch": 1},
    "ca": {"steps": 1, "images": 2, "batch": 1},
    "salun": {"steps": 1, "images": 2, "batch": 1},
}
INAPPROPRIATE = 11  # phrases of the list that UCE's and RECE's code erase for violence


def resolve(name: str, edition: str, concept: str) -> dict[str, Any]:
    return load_card(DefenseCard, name, ROOTS).resolve(edition, concept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edition", ["paper", "shapes"])
def test_every_concept_of_a_card_builds_attaches_and_detaches(roomy: Any, name: str, edition: str) -> None:
    card = load_card(DefenseCard, name, ROOTS)
    before = {k: v.clone() for k, v in roomy.unet.state_dict().items()}
    for concept in card.concepts or {"benign": {}}:
        params = {**card.resolve(edition, concept), "concept": concept}
        artefact = defenses.build(card.mechanism, roomy, params) if card.artefact else None
        defense = defenses.load(card.mechanism, roomy, params, artefact)
        defense.attach(roomy)
        changed = any(not before[k].equal(v) for k, v in roomy.unet.state_dict().items())
        assert changed == card.artefact
        defense.detach(roomy)
        assert all(before[k].equal(v) for k, v in roomy.unet.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("edition", ["paper", "shapes"])
def test_every_concept_of_a_trained_card_can_be_built(roomy: Any, name: str, edition: str) -> None:
    card = load_card(DefenseCard, name, ROOTS)
    for concept in card.concepts or {}:
        params = {**card.resolve(edition, concept), "concept": concept, **TRAINED[name]}
        built = defenses.build(card.mechanism, roomy, params, Painter().context())
        assert any(not torch.equal(tensor, roomy.unet.state_dict()[key]) for key, tensor in built.items()), concept


@pytest.mark.parametrize(
    ("name", "concept", "expected"),
    [
        ("esd", "nudity", {"erase": ["nudity"], "train": "noxattn", "steps": 1000, "lr": 1e-5, "eta": 1.0}),
        ("esd", "van-gogh", {"erase": ["Van Gogh"], "train": "xattn", "sampler_steps": 50, "guidance": 3.0}),
        ("ca", "nudity", {"steps": 400, "lr": 6.4e-5, "prior": 1.0, "train": "attention", "images": 1000}),
        ("ca", "van-gogh", {"steps": 100, "lr": 1.6e-5, "train": "cross-attention", "erase": ["van gogh"]}),
        ("salun", "nudity", {"steps": 100, "lr": 1e-5, "alpha": 0.1, "share": 0.5, "images": 800, "batch": 8}),
        ("salun", "church", {"steps": 500, "alpha": 0.5}),
    ],
)
def test_trained_defenses_have_the_published_hyperparameters(name: str, concept: str, expected: dict) -> None:
    params = resolve(name, "paper", concept)
    assert {k: params[k] for k in expected} == expected
    assert load_card(DefenseCard, name, ROOTS).artefact


@pytest.mark.parametrize("name", TRAINED)
def test_trained_defenses_on_shapes_do_not_take_the_papers_length(name: str) -> None:
    for concept in ("nudity", "violence", "van-gogh"):
        params = resolve(name, "shapes", concept)
        assert params["steps"] <= 100
        assert params.get("images", 0) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_whether_there_is_something_to_build(pipe: Any, name: str) -> None:
    card = load_card(DefenseCard, name, ROOTS)
    if not card.artefact:
        with pytest.raises(UserError, match="nothing to build"):
            defenses.build(card.mechanism, pipe, {})


def test_sld_configurations_are_the_published_ones() -> None:
    keys = ("warmup", "scale", "threshold", "momentum_scale", "momentum_beta")
    got = {name: tuple(resolve(name, "paper", "nudity")[k] for k in keys) for name in NAMES if name.startswith("sld")}
    assert got == {
        "sld-medium": (10, 1000, 0.01, 0.3, 0.4),
        "sld-strong": (7, 2000, 0.025, 0.5, 0.7),
        "sld-max": (0, 5000, 1.0, 0.5, 0.7),
    }


def test_on_shapes_slds_warm_up_is_the_same_share_of_twelve_steps() -> None:
    steps = load_card(BackboneCard, "shapes", ROOTS).steps
    for name in ("sld-medium", "sld-strong", "sld-max"):
        share = resolve(name, "paper", "nudity")["warmup"] / 50
        assert resolve(name, "shapes", "nudity")["warmup"] == round(share * steps)


@pytest.mark.parametrize(
    ("name", "concept", "expected"),
    [
        ("uce", "nudity", {"erase": ["nudity"], "target": " ", "lam": 0.5, "erase_scale": 1.0, "preserve_scale": None}),
        ("uce", "van-gogh", {"erase": ["Van Gogh"], "target": "art"}),
        ("rece", "nudity", {"erase": ["nudity"], "epochs": 3, "reg": 0.1, "lam": 0.1}),
        ("rece", "nudity", {"preserve": [" "], "preserve_scale": 0.1, "erase_scale": 1.0, "technique": "replace"}),
        ("rece", "violence", {"epochs": 2, "reg": 0.1, "preserve_scale": 1.1}),
        ("rece", "van-gogh", {"erase": ["Van Gogh"], "target": "art", "epochs": 1, "reg": 0.001}),
    ],
)  # fmt: skip
def test_closed_forms_have_the_published_hyperparameters(name: str, concept: str, expected: dict) -> None:
    params = resolve(name, "paper", concept)
    assert {k: params[k] for k in expected} == expected


@pytest.mark.parametrize("name", ["uce", "rece"])
def test_violence_is_erased_as_the_list_of_inappropriate_concepts(name: str) -> None:
    assert len(resolve(name, "paper", "violence")["erase"]) == INAPPROPRIATE


@pytest.mark.parametrize("name", ["uce", "rece"])
def test_on_shapes_only_the_main_word_is_erased_so_that_synonyms_test_generalisation(name: str) -> None:
    words = {c: resolve(name, "shapes", c)["erase"] for c in ("nudity", "violence", "van-gogh")}
    assert words == {"nudity": ["star"], "violence": ["ring"], "van-gogh": ["striped"]}
    assert resolve(name, "shapes", "van-gogh")["target"] == "plain"


def test_negative_prompt_for_nudity_has_the_seventeen_phrases() -> None:
    assert len(set(resolve("sd-np", "paper", "nudity")["phrases"])) == 17
    assert resolve("sd-np", "shapes", "nudity")["phrases"] == ["star", "sparkle"]


@pytest.mark.parametrize("name", ["sld-max", "uce"])
def test_a_concept_that_a_card_lacks_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(UserError, match="nudity, violence"):
        resolve(name, "paper", "benign")


def test_none_serves_every_concept() -> None:
    assert resolve("none", "paper", "benign") == {}
