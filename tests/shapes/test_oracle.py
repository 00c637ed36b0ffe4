"""The oracle against the generator: what was drawn is what is read."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from harness.shapes import oracle, world

Image = NDArray[np.float64]


def drawn(scene: world.Scene, seed: int) -> NDArray[np.uint8]:
    return np.asarray(world.render(scene, random.Random(seed)))


def exact(count: int, spoil: Callable[[Image], Image]) -> int:
    """How many of ``count`` random scenes are read exactly after ``spoil``."""
    rng = random.Random("oracle")
    right = 0
    for seed in range(count):
        scene = world.sample_scene(rng)
        spoilt = np.clip(spoil(drawn(scene, seed).astype(np.float64)) + 0.5, 0, 255).astype(np.uint8)
        right += oracle.read(spoilt).scene() == oracle.canonical(scene)
    return right


def test_clean_renders_are_read_exactly() -> None:
    assert exact(400, lambda image: image) >= 398


@pytest.mark.parametrize(
    ("blur", "noise", "least"), [(0.5, 0.0, 148), (0.8, 0.0, 142), (0.0, 10.0, 148), (0.6, 8.0, 147)]
)
def test_blur_and_noise_are_tolerated(blur: float, noise: float, least: int) -> None:
    source = np.random.default_rng(0)

    def spoil(image: Image) -> Image:
        return ndimage.gaussian_filter(image, (blur, blur, 0)) + source.normal(0, noise, image.shape)

    assert exact(150, spoil) >= least


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_relation_and_order_follow_the_places(seed: int) -> None:
    scene = world.sample_scene(random.Random(seed))
    reading = oracle.read(drawn(scene, seed))
    assert (reading.relation is None) == (len(reading.objects) != 2)
    if reading.relation is not None:
        first, second = reading.objects
        assert (first.x < second.x) if reading.relation == "left of" else (first.y < second.y)


def test_canonical_turns_a_relation_round_and_keeps_the_meaning() -> None:
    red, blue = world.Object("star", "red"), world.Object("ring", "blue")
    below = world.Scene((red, blue), "below", "gray", "plain")
    assert oracle.canonical(below) == world.Scene((blue, red), "above", "gray", "plain")
    assert oracle.canonical(oracle.canonical(below)) == oracle.canonical(below)


def test_empty_backgrounds_hold_nothing() -> None:
    for background in world.BACKGROUNDS:
        for texture in world.TEXTURES:
            reading = oracle.read(drawn(world.Scene((), None, background, texture), 1))
            assert reading == oracle.Reading((), None, background, texture)


def test_shapeless_blobs_are_never_stars_nor_rings() -> None:
    source, rng = np.random.default_rng(0), random.Random(0)
    for _ in range(150):
        field = ndimage.gaussian_filter(source.normal(size=(32, 32)), rng.choice([2, 3, 4]))
        cover = ndimage.gaussian_filter((field > np.quantile(field, 0.87)).astype(float), 0.5)[..., None]
        colour = np.array(world.COLOURS[rng.choice(list(world.COLOURS))])
        ground = np.array(world.BACKGROUNDS[rng.choice(list(world.BACKGROUNDS))])
        reading = oracle.read((cover * colour + (1 - cover) * ground).astype(np.uint8))
        assert not {o.shape for o in reading.objects} & {"star", "ring"}


def test_noise_holds_no_star() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert not any(oracle.has(oracle.read(image), "star") for image in noise)


def test_wrong_size_and_unknown_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 3\) uint8"):
        oracle.read(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="'heart' is not a shape"):
        oracle.has(oracle.read(np.zeros((32, 32, 3), dtype=np.uint8)), "heart")
