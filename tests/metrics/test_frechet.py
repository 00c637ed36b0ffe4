"""Frechet and kernel distance beside the formulas as printed, and where they are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from harness.metrics.frechet import Gaussian, fid, frechet

Array = np.ndarray


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift * rng.normal(size=d)


def printed(x: Array, y: Array) -> float:
    """Equation 6 with SciPy's square root of S1 S2, as the field's implementations have it."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real))


@given(st.integers(2, 12), st.integers(0, 10_000), st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_it_is_the_formula_as_printed(d: int, seed: int, shift: float) -> None:
    x, y = features(60, d, seed), features(45, d, seed + 1, shift)
    assert fid(x, y) == pytest.approx(printed(x, y), rel=1e-6, abs=1e-8)


@given(
    st.lists(st.tuples(*[st.floats(-5, 5)] * 2, *[st.floats(0.01, 4)] * 2), min_size=1, max_size=6),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_of_known_gaussians(axes: list[tuple[float, float, float, float]], seed: int) -> None:
    """Covariances with shared axes: a sum over them of (m1 - m2)^2 + (s1 - s2)^2, whatever the rotation."""
    m1, m2, s1, s2 = (np.array(values) for values in zip(*axes, strict=True))
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(axes),) * 2))[0]
    first = Gaussian(turn @ m1, turn * s1, 2)
    second = Gaussian(turn @ m2, turn * s2, 2)
    assert frechet(first, second) == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), abs=1e-9)


def test_of_covariances_that_do_not_commute() -> None:
    """In two dimensions tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 S2))."""
    s1, s2 = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    shared = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1 @ s2)))
    first, second = (Gaussian(np.zeros(2), np.linalg.cholesky(s), 9) for s in (s1, s2))
    assert frechet(first, second) == pytest.approx(7 - 2 * shared, abs=1e-12)


def test_fewer_images_than_numbers_are_no_trouble() -> None:
    x, y = features(10, 64, 0), features(12, 64, 1)
    # The other order of the same trace: (S1^1/2 S2 S1^1/2) is symmetric, with the same eigenvalues as S1 S2.
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s1 + 1e-14 * np.eye(64)).real
    values = np.linalg.eigvalsh(root @ s2 @ root)
    gap = x.mean(0) - y.mean(0)
    expected = gap @ gap + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    assert fid(x, y) == pytest.approx(expected, rel=1e-4)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 8), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_zero_for_itself_the_same_both_ways_whatever_the_order(d: int, seed: int) -> None:
    x, y = features(30, d, seed), features(20, d, seed + 1)
    shuffled = np.random.default_rng(seed).permutation(x)
    assert fid(x, x) == pytest.approx(0, abs=1e-7)
    assert fid(x, y) == pytest.approx(fid(y, x), rel=1e-6, abs=1e-8)
    assert fid(shuffled, y) == pytest.approx(fid(x, y), rel=1e-6, abs=1e-8)
    assert fid(x, y) >= 0


def test_float16_features_are_counted_in_float64() -> None:
    x, y = (features(40, 5, seed, shift=20).astype(np.float16) for seed in (0, 1))
    assert fid(x, y) == pytest.approx(printed(x.astype(np.float64), y.astype(np.float64)), rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(5), "got \\(5,\\)"),
        (np.zeros((1, 5)), "got \\(1, 5\\)"),
        (np.zeros((3, 0)), "got \\(3, 0\\)"),
        (np.full((3, 5), np.nan), "not a finite number"),
        (np.zeros((3, 4)), "of 4 and of 5 numbers"),
    ],
)
def test_what_is_no_set_of_features_is_refused(wrong: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fid(wrong, np.ones((3, 5)))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 7), (7, 7), (8, 7), (50, 4)])
def test_moments_are_those_of_the_set(n: int, d: int) -> None:
    rows = features(n, d, seed=3, shift=2)
    mean, factor, count = Gaussian.of(rows)
    assert count == n
    assert mean == pytest.approx(rows.mean(0))
    assert factor @ factor.T == pytest.approx(np.atleast_2d(np.cov(rows, rowvar=False)), abs=1e-12)
