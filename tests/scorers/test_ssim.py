"""SSIM beside the formula written out window by window, and beside torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portraits import group

from harness import scorers
from harness.errors import UserError
from harness.scorers import ssim
from harness.scorers.batching import Image


def noisy(image: Image, spread: float, seed: int = 0) -> Image:
    changed = image + np.random.default_rng(seed).normal(0, spread, image.shape)
    return np.clip(changed, 0, 255).astype(np.uint8)


def random_image(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def windowed(first: np.ndarray, second: np.ndarray) -> float:
    """Equation 13 for every 11 x 11 window, with weighted moments about the mean."""
    row, column = np.mgrid[-5:6, -5:6]
    weight = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = (p[top : top + 11, left : left + 11] for p in (first, second))
            mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
            var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
            both = (weight * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 2.55**2, 7.65**2
            found.append(
                (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("size", [(11, 11), (16, 23), (31, 12)])
@pytest.mark.parametrize("spread", [3.0, 40.0])
def test_it_is_the_formula_window_by_window(size: tuple[int, int], spread: float) -> None:
    image = random_image(*size, seed=1)
    other = noisy(image, spread)
    found = scorers.load("ssim")([other], [image])
    a, b = (p.astype(np.float64) for p in (other, image))
    assert found["ssim_rgb"][0] == pytest.approx(np.mean([windowed(a[..., c], b[..., c]) for c in range(3)]), abs=1e-9)
    grey = [0.299 * p[..., 0] + 0.587 * p[..., 1] + 0.114 * p[..., 2] for p in (a, b)]
    assert found["ssim_grey"][0] == pytest.approx(windowed(*grey), abs=1e-9)


@pytest.mark.parametrize(
    "change",
    [lambda p: noisy(p, 20), lambda p: p[::-1], lambda p: (p * 0.7).astype(np.uint8)],
    ids=["noisy", "mirrored", "darker"],
)
def test_it_is_torchmetrics_where_the_window_lies_inside(change: Callable[[Image], Image]) -> None:
    import torch
    from torchmetrics.functional import image as functional

    image = group(256, 192, 3)
    other = np.ascontiguousarray(change(image))
    tensors = [torch.from_numpy(p.astype(np.float64).transpose(2, 0, 1)[None]) for p in (other, image)]
    # Its own mean takes in the border, where the images are reflected.
    _, local = functional.structural_similarity_index_measure(*tensors, data_range=255.0, return_full_image=True)
    expected = float(local[..., 5:-5, 5:-5].mean())
    assert scorers.load("ssim")([other], [image])["ssim_rgb"][0] == pytest.approx(expected, abs=1e-7)


@given(st.integers(11, 40), st.integers(11, 40), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_one_for_itself_and_the_same_both_ways(height: int, width: int, seed: int) -> None:
    scorer = scorers.load("ssim")
    one, two = random_image(height, width, seed), random_image(height, width, seed + 1)
    found = scorer([one, one, two], [one, two, one])
    for name in ssim.COLUMNS:
        same, there, back = found[name]
        assert same == pytest.approx(1, abs=1e-9)
        assert there == pytest.approx(back, abs=1e-12)
        assert -1 <= there < 1


def test_more_noise_is_less_alike() -> None:
    image = group(256, 256, 0)
    found = scorers.load("ssim")([noisy(image, s) for s in (2, 10, 40, 120)], [image] * 4)
    for name in ssim.COLUMNS:
        assert found[name] == sorted(found[name], reverse=True)


def test_what_cannot_be_compared_costs_no_other_its_score() -> None:
    image, small = random_image(20, 20, 0), random_image(10, 20, 0)
    found = scorers.load("ssim")([image, image, small, image], [image, small, small, None])
    assert found["ssim_error"] == [None, "sizes-differ", "image-size", None]
    assert [value is None for value in found["ssim_rgb"]] == [False, True, True, True]
    for name, kind in ssim.COLUMNS.items():
        assert pa.array(found[name], type=kind).null_count == 3


def test_it_has_neither_parameters_nor_weights() -> None:
    assert scorers.pair("ssim")
    assert ssim.weights({}) == []
    with pytest.raises(UserError, match="no parameter 'window'"):
        ssim.load({"window": 7})
