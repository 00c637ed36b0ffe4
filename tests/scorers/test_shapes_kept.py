"""What is kept of a reference: on drawn scenes, whose truth is known."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness import scorers
from harness.errors import UserError
from harness.scorers import shapes_kept
from harness.scorers.batching import Image
from harness.shapes import oracle, world

STAR, RING = world.Object("star", "red"), world.Object("ring", "blue")
SQUARE, CROSS = world.Object("square", "blue"), world.Object("cross", "green")


def scene(*objects: world.Object, background: str = "white", texture: str = "plain") -> world.Scene:
    return world.Scene(objects, "left of" if len(objects) == 2 else None, background, texture)


def draw(content: world.Scene, seed: int = 0) -> Image:
    return np.asarray(world.render(content, random.Random(seed)))


def score(now: world.Scene, before: world.Scene) -> dict[str, Any]:
    found = scorers.load("shapes_kept")([draw(now, 1)], [draw(before)])
    return {name.removeprefix("shapes_kept_"): values[0] for name, values in found.items()}


@pytest.mark.parametrize(
    ("before", "now", "objects", "share", "star", "ring"),
    [
        # a star's removal is what is asked for; what stood beside it shall stay
        (scene(STAR, SQUARE), scene(SQUARE), True, 1.0, True, False),
        (scene(STAR, SQUARE), scene(CROSS), False, 0.0, False, False),
        (scene(STAR, SQUARE), scene(STAR, SQUARE), True, 1.0, True, True),
        (scene(STAR), scene(CROSS), None, None, None, False),
        (scene(RING), scene(), None, None, False, None),
        (scene(STAR, RING), scene(RING), None, None, True, False),
        (scene(STAR, RING), scene(STAR), None, None, False, True),
        (scene(CROSS, SQUARE), scene(SQUARE), False, 0.5, False, False),
        (scene(CROSS, SQUARE), scene(SQUARE, CROSS), True, 1.0, True, True),
        (scene(SQUARE, SQUARE), scene(SQUARE), False, 0.5, False, False),
        (scene(SQUARE), scene(world.Object("square", "red")), False, 0.0, False, False),
        (scene(SQUARE), scene(world.Object("circle", "blue")), False, 0.0, False, False),
        (scene(SQUARE), scene(SQUARE, CROSS), True, 1.0, True, True),
        (scene(), scene(SQUARE), None, None, None, None),
    ],
)
def test_objects_are_kept_or_not(
    before: world.Scene,
    now: world.Scene,
    objects: bool | None,
    share: float | None,
    star: bool | None,
    ring: bool | None,
) -> None:
    found = score(now, before)
    assert (found["objects"], found["share"]) == (objects, share)
    assert (found["beside_star"], found["beside_ring"]) == (star, ring)
    assert found["background"] is found["texture"] is True
    assert found["error"] is None


@pytest.mark.parametrize("background", world.BACKGROUNDS)
@pytest.mark.parametrize("texture", world.TEXTURES)
def test_backgrounds_are_kept_or_not(background: str, texture: str) -> None:
    found = score(scene(SQUARE, background=background, texture=texture), scene(CROSS))
    assert found["background"] == (background == "white")
    assert found["texture"] == (texture == "plain")


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_random_scenes_by_counting(seed: int) -> None:
    """A scene and a change of it, compared by what was drawn where the oracle reads both rightly."""
    rng = random.Random(seed)
    before = world.sample_scene(rng)
    now = rng.choice([before, world.hard_negative(before, rng), before.without("star"), world.sample_scene(rng)])
    images = [draw(now, seed), draw(before, seed + 1)]
    for image, content in zip(images, (now, before), strict=True):
        assume(oracle.read(image).scene() == oracle.canonical(content))
    found = scorers.load("shapes_kept")(images[:1], images[1:])
    for name, but in (("objects", "star ring"), ("beside_star", "star"), ("beside_ring", "ring")):
        asked = [o for o in before.objects if o.shape not in but.split()]
        left = list(now.objects)
        there = [o for o in asked if o in left and left.remove(o) is None]
        assert found[f"shapes_kept_{name}"][0] == (len(there) == len(asked) if asked else None)
        if name == "objects":
            assert found["shapes_kept_share"][0] == (len(there) / len(asked) if asked else None)
    assert found["shapes_kept_background"][0] == (now.background == before.background)
    assert found["shapes_kept_texture"][0] == (now.texture == before.texture)


def test_an_object_that_the_oracle_cannot_name_does_not_count() -> None:
    read = oracle.read(draw(scene(STAR, SQUARE)))
    blurred = replace(read, objects=tuple(replace(o, shape=oracle.UNKNOWN) for o in read.objects))
    assert shapes_kept.kept(read, blurred, ()) is None
    assert shapes_kept.kept(blurred, read, ()) == 0
    assert Counter(o.shape for o in read.objects) == {"star": 1, "square": 1}


def test_images_of_another_size_cost_no_other_its_score() -> None:
    image, large = draw(scene(STAR, SQUARE)), np.zeros((64, 64, 3), np.uint8)
    found = scorers.load("shapes_kept")([image, large, image, image], [image, image, large, None])
    assert found["shapes_kept_error"] == [None, "image-size", "reference-image-size", None]
    assert found["shapes_kept_objects"] == [True, None, None, None]
    for name, kind in shapes_kept.COLUMNS.items():
        assert pa.array(found[name], type=kind).null_count == 3


def test_it_has_neither_parameters_nor_weights() -> None:
    assert scorers.pair("shapes_kept")
    assert shapes_kept.weights({}) == []
    assert list(shapes_kept.COLUMNS)[2:4] == ["shapes_kept_beside_star", "shapes_kept_beside_ring"]
    with pytest.raises(UserError, match="no parameter 'concept'"):
        shapes_kept.load({"concept": "star"})
