"""GLoCE's closed forms against numpy, written out row by row, and by perturbation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.defenses.gated_projection import (
    FeatureSums,
    Moments,
    edit_between,
    gate,
    gate_directions,
    gate_score,
    principal,
    pyramid,
)


def features(count: int, width: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width))


def moments(rows: torch.Tensor) -> Moments:
    sums = FeatureSums()
    for piece in rows.split(3):
        sums.add(piece)
    return sums.moments()


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_moments_are_numpys_however_the_rows_come(count: int, width: int, seed: int) -> None:
    rows = features(count, width, seed)
    found = moments(rows)
    assert np.allclose(found.mean, rows.numpy().mean(0))
    assert np.allclose(found.covariance, np.cov(rows.numpy().T, bias=True), atol=1e-8)


def test_no_features_have_no_moments() -> None:
    with pytest.raises(ValueError, match="no features"):
        FeatureSums().moments()


def test_a_map_counts_at_each_scale_down_to_a_single_pixel() -> None:
    grid = torch.arange(2 * 16, dtype=torch.float64).reshape(1, 16, 2)
    rows = pyramid(grid, poolings=3)
    assert rows.shape == (16 + 4 + 1, 2)
    assert torch.equal(rows[:16], grid[0])
    corner = grid[0].reshape(4, 4, 2)[:2, :2].reshape(4, 2)
    assert torch.allclose(rows[16], corner.mean(0))
    assert torch.allclose(rows[20], grid[0].mean(0))


def test_pixels_that_form_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="12 pixels form no square"):
        pyramid(torch.zeros(1, 12, 3))


def test_principal_directions_are_those_of_the_largest_singular_values() -> None:
    covariance = moments(features(40, 6, 1)).covariance
    directions = principal(covariance, 3)
    left = np.linalg.svd(covariance.numpy())[0][:, :3]
    assert np.allclose(np.abs(directions.numpy().T @ left), np.eye(3), atol=1e-8)
    assert torch.equal(principal(covariance, 3), directions)


def test_principal_directions_keep_more_than_any_others() -> None:
    covariance = moments(features(40, 6, 2)).covariance
    best = principal(covariance, 2)
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e-2):
        for _ in range(30):
            moved = torch.linalg.qr(best + size * torch.randn(best.shape, generator=generator, dtype=torch.float64))[0]
            assert (moved.T @ covariance @ moved).trace() < (best.T @ covariance @ best).trace() + 1e-12


def test_more_directions_than_the_width_are_all_of_them() -> None:
    assert principal(torch.eye(3), 9).shape == (3, 3)


def test_the_edit_is_the_papers_formula() -> None:
    target, surrogate = moments(features(50, 5, 3)), moments(features(50, 5, 4))
    change = edit_between(target, surrogate, target_rank=2, surrogate_rank=3)
    v_t = np.linalg.svd(target.covariance.numpy())[0][:, :2]
    v_s = np.linalg.svd(surrogate.covariance.numpy())[0][:, :3]
    for x in features(6, 5, 5).numpy():
        expected = surrogate.mean.numpy() + v_s @ v_s.T @ (np.eye(5) - v_t @ v_t.T) @ (x - target.mean.numpy())
        got = change.bias + change.restore @ change.reduce.T @ (torch.from_numpy(x) - change.debias)
        assert np.allclose(got.numpy(), expected)


def test_what_the_target_varies_along_and_its_mean_leave_no_trace() -> None:
    target, surrogate = moments(features(50, 5, 6)), moments(features(50, 5, 7))
    change = edit_between(target, surrogate, target_rank=2, surrogate_rank=5)
    along = target.mean + 7.0 * principal(target.covariance, 2)[:, 0]
    edited = change.bias + change.restore @ change.reduce.T @ (along - change.debias)
    assert torch.allclose(edited, surrogate.mean)


def test_the_gate_looks_along_the_targets_offset_from_the_neutral_mean() -> None:
    flat = Moments(torch.tensor([3.0, 4.0, 0.0]), torch.zeros(3, 3))
    direction = gate_directions(flat, torch.zeros(3), 1)
    assert torch.allclose(direction[:, 0], torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64))
    score = gate_score(torch.tensor([[6.0, 8, 0], [0, 0, 5], [0, 0, 0]]), direction.float(), torch.zeros(3))
    assert torch.allclose(score, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_the_gate_is_half_open_at_its_centre_and_shut_below(relative: bool) -> None:
    scores = [0.1, 0.2, 0.4]
    valve = gate(torch.eye(2)[:, :1], torch.zeros(2), scores, threshold=1.5, tolerance=0.1, relative=relative)
    assert float(valve.centre) == pytest.approx(np.mean(scores) + 1.5 * np.std(scores, ddof=1))
    half = 0.1 * 1.5 * (np.std(scores, ddof=1) if relative else 1.0)
    opened = [float(torch.sigmoid(valve.slope * offset)) for offset in (-half, 0.0, half)]
    assert opened == pytest.approx([0.01, 0.5, 0.99])


def test_a_gate_of_one_score_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        gate(torch.eye(2), torch.zeros(2), [0.5], 1.5, 0.1, False)
