"""The degenerate guard flags images that show nothing, and no image that shows something."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from portraits import group
from scipy import ndimage

from harness.scorers.degenerate import degenerate
from harness.shapes import world

ImageArray = NDArray[np.uint8]


def photograph(seed: int, size: int = 512, slope: float = 1.0) -> ImageArray:
    """A synthetic photograph: amplitudes fall as 1 / frequency**slope, as in natural scenes (Field 1987)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = 1 / size
    spectrum = np.fft.fft2(rng.normal(size=(3, size, size))) / frequency**slope
    planes = np.fft.ifft2(spectrum).real
    planes = 128 + 55 * planes / planes.std((1, 2), keepdims=True)
    return np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def noise(seed: int, height: int, width: int, grain: int = 1, spread: float = 60) -> ImageArray:
    """White noise in grains of ``grain`` pixels."""
    rng = np.random.default_rng(seed)
    cells = 128 + spread * rng.normal(size=(-(-height // grain), -(-width // grain), 3))
    return np.clip(cells.repeat(grain, 0).repeat(grain, 1)[:height, :width], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (512, 768)])
def test_black_is_black(size: tuple[int, int]) -> None:
    assert degenerate(np.zeros((*size, 3), dtype=np.uint8)) == "black"
    assert degenerate(np.random.default_rng(0).integers(0, 5, (*size, 3), dtype=np.uint8)) == "black"


@pytest.mark.parametrize("size", [16, 32, 64, 512])
@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (90, 60, 10), (0, 0, 40)])
def test_one_colour_is_flat(size: int, colour: tuple[int, int, int]) -> None:
    image = np.full((size, size, 3), colour, dtype=np.uint8)
    shapes_white = size == 32 and colour == (255, 255, 255)
    assert degenerate(image) == (None if shapes_white else "flat")
    if not shapes_white:
        image[::2, ::3] += np.uint8(1) * (image[::2, ::3] < 255)  # a trace of grain
        assert degenerate(image) == "flat"


@given(st.integers(0, 10_000), st.integers(32, 300), st.integers(32, 300))
@settings(max_examples=30, deadline=None)
def test_pixel_noise_is_noise(seed: int, height: int, width: int) -> None:
    assert degenerate(noise(seed, height, width)) == "noise"
    uniform = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert degenerate(uniform) == "noise"


@pytest.mark.parametrize("seed", range(4))
def test_the_grain_of_an_undenoised_latent_is_noise(seed: int) -> None:
    grain = noise(seed, 512, 512, grain=8).astype(np.float32)
    soft = np.clip(ndimage.gaussian_filter(grain, (3, 3, 0)), 0, 255).astype(np.uint8)
    assert degenerate(soft) == "noise"


@pytest.mark.parametrize("slope", [0.8, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_photographs_are_something(seed: int, slope: float) -> None:
    assert degenerate(photograph(seed, slope=slope)) is None
    assert degenerate(photograph(seed, size=256, slope=slope)) is None
    assert degenerate(photograph(seed, size=128, slope=slope)) is None


def test_a_noisy_photograph_is_something() -> None:
    image = photograph(0) + np.random.default_rng(0).normal(0, 15, (512, 512, 3))
    assert degenerate(np.clip(image, 0, 255).astype(np.uint8)) is None


def test_faint_images_are_something() -> None:
    ramp = np.broadcast_to(np.linspace(100, 110, 512)[None, :, None], (512, 512, 3)).astype(np.uint8)
    assert degenerate(ramp) is None
    dark = (photograph(1) // 16).astype(np.uint8)  # 0 to 15: a night scene
    assert degenerate(dark) is None


def test_a_sheet_of_stripes_or_squares_is_something() -> None:
    rows, columns = np.mgrid[:512, :512]
    for pattern in (rows // 8 % 2, (rows // 16 + columns // 16) % 2, (rows // 4 + columns // 4) % 2):
        assert degenerate(np.repeat((pattern * 200).astype(np.uint8)[..., None], 3, -1)) is None


def test_portraits_are_something() -> None:
    assert all(degenerate(group(512, 512, seed)) is None for seed in range(3))


def test_every_scene_of_the_shapes_world_is_something() -> None:
    rng = random.Random(0)
    for _ in range(600):
        assert degenerate(np.asarray(world.render(world.sample_scene(rng), rng))) is None


def test_empty_backgrounds_of_the_shapes_world_are_something_blurred_and_grainy_too() -> None:
    source = np.random.default_rng(0)
    for seed in range(20):
        for background in world.BACKGROUNDS:
            for texture in world.TEXTURES:
                image = np.asarray(world.render(world.Scene((), None, background, texture), random.Random(seed)))
                assert degenerate(image) is None
                decoded = ndimage.gaussian_filter(image.astype(float), (0.6, 0.6, 0)) + source.normal(
                    0, 1.5, image.shape
                )
                assert degenerate(np.clip(decoded, 0, 255).astype(np.uint8)) is None


def test_large_plain_images_are_flat_whatever_the_colour() -> None:
    for colour in world.BACKGROUNDS.values():
        assert degenerate(np.asarray(Image.new("RGB", (512, 512), colour))) == "flat"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"expected a \(height, width, 3\) uint8 image"):
        degenerate(wrong)
