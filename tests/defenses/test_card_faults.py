"""Every shipped defense with a wrong key, an unknown variant, a missing or a mismatched file: refused before any model
is loaded, by what is wrong with it."""

from __future__ import annotations

import importlib
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from benches import bench

from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import card_names, load_card
from harness.defenses import stacked
from harness.errors import UserError
from harness.pipeline import builds
from harness.pipeline.evaluate import Budget, evaluate
from harness.pipeline.executor import Resources
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Places, Request
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store

ROOTS = card_roots()
NAMES = card_names(DefenseCard, ROOTS)
BUILT = [name for name in NAMES if load_card(DefenseCard, name, ROOTS).artefact]
HASHES = FileHashes()
SHAPES = load_card(BackboneCard, "shapes", ROOTS)


def parameters(name: str) -> Any:
    mechanism = load_card(DefenseCard, name, ROOTS).mechanism
    return getattr(importlib.import_module(f"harness.defenses.{mechanism}"), "PARAMS", None)


def choices(name: str) -> dict[str, tuple[str, ...]]:
    """A card's parameters that are one of a few words."""
    fields = parameters(name).model_fields if parameters(name) is not None else {}
    return {
        key: typing.get_args(field.annotation)
        for key, field in fields.items()
        if typing.get_origin(field.annotation) is typing.Literal
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_key_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match="unknown parameter 'nonsense'"):
        stacked.require(overrides.defense(f"{name}:nonsense=1", ROOTS), SHAPES)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in NAMES for key in choices(name)])
def test_an_unknown_variant_is_answered_with_those_there_are(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}'") as caught:
        stacked.require(overrides.defense(f"{name}:{key}=nonsense", ROOTS), SHAPES)
    assert all(choice in str(caught.value) for choice in choices(name)[key])


def with_weights(root: Path, name: str, weights: Path) -> Path:
    """A folder of cards with ``mine``, which is the shipped card with published weights; and a benchmark."""
    card = load_card(DefenseCard, name, ROOTS)
    content = yaml.safe_load(card.path.read_text())
    content.setdefault("params", {})["weights"] = str(weights)
    folder = root / "cards/pipelines/defenses"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    bench(root / "cards", "few", 2)
    return root / "cards"


def plan(cards: Path) -> Plan:
    request = Request(defenses=("mine",), benches=("few",), profile="shapes", regens=("none",))
    return make(request, card_roots(cards), cards / "data", HASHES)


@pytest.mark.parametrize("name", BUILT)
def test_weights_that_are_not_there_are_named_at_planning(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no file .*lost.safetensors"):
        plan(with_weights(tmp_path, name, tmp_path / "lost.safetensors"))


@pytest.mark.parametrize("name", BUILT)
def test_weights_of_another_model_are_refused_by_key_before_the_backbone_is_loaded(tmp_path: Path, name: str) -> None:
    weights = tmp_path / "other.pt"
    torch.save({"of.another.model.weight": torch.zeros(3, 3)}, weights)
    made = plan(with_weights(tmp_path, name, weights))
    with pytest.raises(UserError, match="of.another.model"):
        builds.require_fitting(made, Store(tmp_path / "store"))


def test_an_evaluation_with_such_weights_draws_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "other.pt"
    torch.save({"of.another.model.weight": torch.zeros(3, 3)}, weights)
    cards = with_weights(tmp_path, "esd", weights)
    places = Places(store=tmp_path / "store", out=tmp_path / "runs", data=tmp_path / "data", cards=cards)
    request = Request(defenses=("mine",), benches=("few",), profile="shapes", regens=("none",))
    machine = Resources(executor="inline", workers=1, num_gpus=0, gpu_memory_gb=None, address=None)
    with pytest.raises(UserError, match="of.another.model"):
        evaluate(request, places, machine, Budget.parse("0"), lambda _: None, "a test")
    assert not list((tmp_path / "store").glob("*/*/*.parquet"))
