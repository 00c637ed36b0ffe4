"""The scorers that read CLIP, on the shapes world's: image beside image, image beside text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from harness import scorers
from harness.errors import UserError
from harness.models import clip
from harness.scorers import _clip as shared
from harness.scorers.batching import Image
from harness.shapes import world

SHAPES = "package:harness/shapes/weights/clip"
PAIRS = [("clip_image", {"source": SHAPES}), ("shapes_clip", {})]
TEXTS = [("clip_score", {"source": SHAPES}), ("shapes_clip_score", {})]


@pytest.fixture(scope="module")
def towers() -> clip.Clip:
    return clip.load({"source": SHAPES})


def drawn(count: int, seed: int = 0) -> tuple[list[world.Scene], list[Image]]:
    rng = random.Random(seed)
    scenes = [world.sample_scene(rng) for _ in range(count)]
    return scenes, [np.asarray(world.render(scene, rng)) for scene in scenes]


def unit(features: torch.Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("stem", "params"), PAIRS)
def test_images_compare_by_the_cosine_of_their_features(stem: str, params: dict[str, Any], towers: clip.Clip) -> None:
    _, images = drawn(6)
    references = [*images[1:], images[0]]
    found = scorers.load(stem, {**params, "micro_batch": 4})(images, references)
    expected = (unit(towers.images(images)) * unit(towers.images(references))).sum(1)
    assert found[f"{stem}_cosine"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert min(found[f"{stem}_cosine"]) < 0.9  # they do differ
    for name, kind in scorers.columns(stem).items():
        assert pa.array(found[name], type=kind).null_count == 0


@pytest.mark.parametrize(("stem", "params"), PAIRS)
def test_an_image_is_exactly_like_itself(stem: str, params: dict[str, Any]) -> None:
    _, images = drawn(5, seed=1)
    found = scorers.load(stem, {**params, "micro_batch": 4})(images, images)[f"{stem}_cosine"]
    assert found == pytest.approx([1.0] * 5, abs=1e-15)


@pytest.mark.parametrize(("stem", "params"), PAIRS)
def test_pairs_score_alike_in_any_company_and_both_ways(stem: str, params: dict[str, Any]) -> None:
    _, images = drawn(7, seed=2)
    references = images[::-1]
    scorer = scorers.load(stem, {**params, "micro_batch": 4})
    together = scorer(images, references)[f"{stem}_cosine"]
    assert scorer(images[::-1], references[::-1])[f"{stem}_cosine"][::-1] == together
    assert [scorer([i], [r])[f"{stem}_cosine"][0] for i, r in zip(images, references, strict=True)] == together
    assert scorer(references, images)[f"{stem}_cosine"] == together


@pytest.mark.parametrize(("stem", "params"), PAIRS)
def test_what_has_no_reference_or_is_bad_costs_no_other_its_score(stem: str, params: dict[str, Any]) -> None:
    _, (image, other) = drawn(2)
    bad = np.zeros((4, 4), np.uint8)
    found = scorers.load(stem, params)([image, image, bad, image], [other, None, image, bad])
    assert found[f"{stem}_error"] == [None, None, "not-an-image", "reference-not-an-image"]
    assert [value is None for value in found[f"{stem}_cosine"]] == [False, True, True, True]


@pytest.mark.parametrize(("stem", "params"), TEXTS)
def test_texts_compare_by_the_cosine_of_their_features(stem: str, params: dict[str, Any], towers: clip.Clip) -> None:
    scenes, images = drawn(6)
    texts = [world.sentence(scene) for scene in scenes]
    texts[1], texts[3] = texts[3], texts[1]
    found = scorers.load(stem, {**params, "micro_batch": 4})(images, texts)
    expected = (unit(towers.images(images)) * unit(towers.texts(texts)[0])).sum(1)
    assert found[f"{stem}_cosine"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[f"{stem}_percent"] == pytest.approx([max(100 * value, 0) for value in expected], abs=1e-4)
    assert found[f"{stem}_cut"] == [False] * 6
    for name, kind in scorers.columns(stem).items():
        assert pa.array(found[name], type=kind).null_count == 0


def test_the_right_text_scores_highest() -> None:
    scenes = [
        world.Scene((world.Object(shape, colour),), None, ground, "plain")
        for shape, colour, ground in [("star", "red", "white"), ("ring", "blue", "gray"), ("cross", "green", "pink")]
    ]
    images = [np.asarray(world.render(scene, random.Random(0))) for scene in scenes]
    texts = [world.sentence(scene) for scene in scenes]
    scorer = scorers.load("shapes_clip_score")
    table = np.array([scorer([image] * 3, texts)["shapes_clip_score_percent"] for image in images])
    assert table.argmax(1).tolist() == [0, 1, 2]


def test_a_text_that_is_cut_is_said_so_and_an_empty_one_is_a_text() -> None:
    _, (image,) = drawn(1)
    long = " ".join(["a red star"] * 100)
    found = scorers.load("shapes_clip_score")([image] * 4, [long, "", None, "a red star"])
    assert found["shapes_clip_score_cut"] == [True, False, None, False]
    assert [value is None for value in found["shapes_clip_score_cosine"]] == [False, False, True, False]
    assert found["shapes_clip_score_error"] == [None] * 4


def test_a_texts_score_does_not_depend_on_batch_mates() -> None:
    scenes, images = drawn(7, seed=5)
    texts = [world.sentence(scene) for scene in scenes]
    texts[2] = " ".join(["a blue ring"] * 50)
    scorer = scorers.load("shapes_clip_score", {"micro_batch": 4})
    together = scorer(images, texts)["shapes_clip_score_cosine"]
    alone = [scorer([i], [t])["shapes_clip_score_cosine"][0] for i, t in zip(images, texts, strict=True)]
    assert together == alone


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([3.0, 4.0], [6.0, 8.0], 1.0),
        ([1.0, 0.0], [0.0, 2.0], 0.0),
        ([1.0, 1.0], [-2.0, -2.0], -1.0),
        ([0.0, 0.0], [1.0, 2.0], None),
        ([np.nan, 1.0], [1.0, 2.0], None),
        ([1.0, 1.0], [np.inf, 2.0], None),
    ],
)
def test_cosines(first: list[float], second: list[float], expected: float | None) -> None:
    found = shared.cosine(np.array(first), np.array(second))
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-15))


class Broken:
    """A tower that gives a NaN for the dark image, and a negative cosine for every text."""

    micro_batch = 2

    def images(self, images: list[Image]) -> torch.Tensor:
        return torch.tensor([[float("nan") if image.max() == 0 else 1.0, 1.0] for image in images])

    def texts(self, texts: list[str]) -> tuple[torch.Tensor, list[bool]]:
        return torch.tensor([[-1.0, 0.5]] * len(texts)), [False] * len(texts)


def test_what_is_not_finite_has_a_code_and_a_score_is_never_negative() -> None:
    dark, light = (np.full((2, 2, 3), level, np.uint8) for level in (0, 200))
    compare = shared.Cosine("clip_image", shared.image_features(Broken()), 2)  # type: ignore[arg-type]
    assert compare([light, dark, light], [light, light, dark])["clip_image_error"] == [None, "not-finite", "not-finite"]
    found = shared.Score("clip_score", Broken())([dark, light], ["a", "b"])  # type: ignore[arg-type]
    assert found["clip_score_error"] == ["not-finite", None]
    assert found["clip_score_percent"] == [None, 0.0]
    assert found["clip_score_cosine"][1] < 0


@pytest.mark.parametrize(("stem", "params"), [*PAIRS, *TEXTS])
def test_parameters_are_checked_and_weights_listed(stem: str, params: dict[str, Any]) -> None:
    assert {p.name for p in scorers.weights(stem, params)} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert scorers.pair(stem) == (stem in dict(PAIRS))
    assert scorers.text(stem) == (stem in dict(TEXTS))
    for wrong, message in (
        ({"micro_batch": 0}, "micro_batch is 0, not a whole number of 1 or more"),
        ({"micro_batch": True}, "micro_batch is True"),
        ({"dtype": "float31"}, r"float31.*did you mean 'float32'\?"),
        ({"sorce": "x"}, r"no parameter 'sorce'; did you mean 'source'\?"),
        ({"source": "no-such-folder"}, "is no hub id"),
    ):
        with pytest.raises(UserError, match=message):
            scorers.load(stem, {**params, **wrong})


def test_a_folder_without_a_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"no file .*config\.json"):
        scorers.weights("clip_image", {"source": str(tmp_path)})


def test_the_large_model_is_pinned() -> None:
    assert scorers.weights("clip_image") == scorers.weights("clip_score") == []
