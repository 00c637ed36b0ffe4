"""The shipped weights: real classes, small enough, and as good as the model card says (on a sample)."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors import safe_open

from harness.shapes import oracle, world
from tools.shapes import measure

STARS = 48  # images drawn for each band


def test_all_weights_are_fp16_safetensors_of_at_most_20_mb() -> None:
    files = [f for f in measure.WEIGHTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".jinja", ".txt"}
    for file in measure.WEIGHTS.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            floats = {tensors.get_slice(k).get_dtype() for k in tensors.keys()} - {"I64", "I32"}  # noqa: SIM118
        assert floats == {"F16"}, file


def test_the_oracle_reads_images_that_passed_the_autoencoder() -> None:
    figures = {f.what: f for f in measure.measure_oracle(100, measure.WEIGHTS)}
    assert figures["scene read exactly"].k >= 99
    assert figures["scene read exactly, after the autoencoder"].k >= 97


def test_classifier_figures_hold() -> None:
    for figure in measure.measure_classifier(200, measure.WEIGHTS):
        assert figure.k >= 0.98 * figure.n, figure


@pytest.fixture(scope="module")
def drawn() -> dict[bool, tuple[list[world.Scene], list[oracle.Reading], list[set[str]]]]:
    """Scenes with and without a star, and what the oracle and the classifier see in their images."""
    found = {}
    for star in (True, False):
        scenes = measure.held_out(
            STARS, f"test-{star}", lambda s, star=star: s.objects and ("star" in s.shapes()) == star
        )
        images = measure.draw([world.sentence(s, random.Random(i)) for i, s in enumerate(scenes)])
        found[star] = (scenes, [oracle.read(p) for p in images], measure.classify(images))
    return found


def test_a_star_is_drawn_when_asked_for(drawn: dict) -> None:
    _, readings, labels = drawn[True]
    assert sum(oracle.has(r, "star") for r in readings) >= 45
    assert sum("star" in found for found in labels) >= 45


def test_no_star_is_drawn_when_none_is_asked_for(drawn: dict) -> None:
    _, readings, labels = drawn[False]
    assert sum(oracle.has(r, "star") for r in readings) <= 1
    assert sum("star" in found for found in labels) <= 1


def test_other_objects_keep_shape_and_colour(drawn: dict) -> None:
    right = total = 0
    for scenes, readings, _ in drawn.values():
        for scene, reading in zip(scenes, readings, strict=True):
            others = {o for o in scene.objects if o.shape != "star"}
            right += bool(others) and others <= set(reading.scene().objects)
            total += bool(others)
    assert right >= 0.88 * total


def test_the_text_encoder_is_clips_text_tower() -> None:
    from transformers import CLIPModel, CLIPTextModel

    clip = CLIPModel.from_pretrained(measure.WEIGHTS / "clip").text_model.state_dict()
    tower = CLIPTextModel.from_pretrained(measure.WEIGHTS / "sd" / "text_encoder").state_dict()
    assert len(clip) == len(tower)
    for key, value in tower.items():
        assert torch.equal(value, clip[key.removeprefix("text_model.")]), key
