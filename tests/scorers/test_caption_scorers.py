"""The scorers that compare captions, on the shapes world's captioner and CLIP."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from harness import scorers
from harness.errors import UserError
from harness.models import clip, vision_language
from harness.models.vision_language import Turn
from harness.scorers._captions import CAPTION, Captions
from harness.scorers.batching import Image
from harness.shapes import world

STEM = "shapes_caption_clip"
CLIP, CAPTIONER = (f"package:harness/shapes/weights/{name}" for name in ("clip", "captioner"))


def drawn(count: int) -> list[Image]:
    rng = random.Random(0)
    return [np.asarray(world.render(world.sample_scene(rng), rng)) for _ in range(count)]


@pytest.fixture(scope="module")
def towers() -> clip.Clip:
    return clip.load({"source": CLIP})


def test_the_score_is_the_cosine_of_what_clip_reads_in_both_captions(towers: clip.Clip) -> None:
    images = drawn(5)
    references: list[Image | None] = [*images[1:], None]
    found = scorers.load(STEM, {"micro_batch": 2})(images, references)
    captioner = vision_language.load({"source": CAPTIONER, "micro_batch": 4})
    captions = [said for (said,) in captioner.converse(images, [CAPTION])]
    features, _ = towers.texts(captions)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    assert found[f"{STEM}_cosine"][:4] == pytest.approx((unit[:4] * unit[1:]).sum(1).tolist(), abs=1e-6)
    assert len(set(captions)) > 1
    assert min(found[f"{STEM}_cosine"][:4]) < 0.99
    assert [found[name][4] for name in (f"{STEM}_cosine", f"{STEM}_cut", f"{STEM}_error")] == [None] * 3


class Told:
    """A captioner that says what it is told to, image by image."""

    micro_batch = 2

    def __init__(self, captions: dict[int, str]) -> None:
        self._captions = captions

    def converse(self, images: Sequence[Image], turns: Sequence[Turn]) -> list[list[str]]:
        return [[self._captions[int(image[0, 0, 0])] for _ in turns] for image in images]


def flat(value: int) -> Image:
    return np.full((8, 8, 3), value, np.uint8)


def test_two_refusals_are_not_alike(towers: clip.Clip) -> None:
    told: Any = Told({0: "I'm sorry, but I can't describe this image.", 1: "a red square", 2: "", 3: "a red square"})
    found = Captions(STEM, told, towers)([flat(i) for i in (0, 1, 2, 1)], [flat(i) for i in (0, 0, 1, 3)])
    assert found[f"{STEM}_error"] == ["caption-refused", "reference-caption-refused", "caption-refused", None]
    assert found[f"{STEM}_cosine"] == [None, None, None, pytest.approx(1)]


def test_a_caption_longer_than_the_window_is_noted(towers: clip.Clip) -> None:
    told: Any = Told({0: "red " * towers.window, 1: "a red square"})
    found = Captions(STEM, told, towers)([flat(0), flat(1)], [flat(1), flat(1)])
    assert found[f"{STEM}_cut"] == [True, False]


def test_both_models_of_the_hub_are_named_and_a_folder_is_none() -> None:
    sources = [ref.source for ref in scorers.hub_weights("caption_clip")]
    assert sources == ["openai/clip-vit-large-patch14", "Qwen/Qwen2-VL-7B-Instruct"]
    assert [r.source for r in scorers.hub_weights("caption_clip", {"captioner": CAPTIONER})] == sources[:1]
    assert scorers.hub_weights(STEM) == ()
    assert {path.parent.name for path in scorers.weights(STEM)} == {"clip", "captioner"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"captoiner": "x"}, "no parameter 'captoiner'; did you mean 'captioner'"),
        ({"captioner": "somebody/else"}, "give its revision"),
        ({"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_a_mistake_in_a_parameter_is_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scorers.load(STEM, params)
