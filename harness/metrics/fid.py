"""Frechet distance between two sets of pictures, from the features of a network (``inception_features``).

Heusel et al. 2017 (NeurIPS, eq. 6): of two Gaussians with the sets' means and covariances,

    d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

It falls with the number of pictures (bias of order 1 / n), so only figures of equal n compare; the kernel distance
beside it has no such bias. Beside FID goes what was compared: the reference set, the network, n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Gaussian(NamedTuple):
    """A set of features as its moments."""

    mean: Array  # (d,)
    covariance: Array  # (d, d), unbiased
    n: int


def gaussian(features: NDArray[np.floating]) -> Gaussian:
    """Moments of a set, in float64.

    Args:
        features: (n, d), n of 2 or more.

    Raises:
        ValueError: another shape, fewer than two rows, or a number that is not finite.
    """
    rows = _checked(features)
    return Gaussian(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False)), len(rows))


def frechet(first: Gaussian, second: Gaussian) -> float:
    """Frechet distance of two Gaussians, squared (as FID is).

    The trace of (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2) S2^(1/2), which needs no square root of a
    matrix that is not symmetric, and stays right where n < d leaves the covariances singular.

    Raises:
        ValueError: features of different lengths.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of {len(first.mean)} and of {len(second.mean)} numbers do not compare")
    gap = first.mean - second.mean
    shared = np.linalg.norm(_root(first.covariance) @ _root(second.covariance), "nuc")
    distance = gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return max(0.0, float(distance))


def fid(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Frechet distance of two sets of features, (n, d) and (m, d).

    Raises:
        ValueError: as ``gaussian`` and ``frechet``.
    """
    return frechet(gaussian(first), gaussian(second))


def kid(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Kernel distance: unbiased estimate of the squared MMD with the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (ICLR, "Demystifying MMD GANs"), over all pairs instead of a mean over
    random subsets. May be negative.

    Args:
        first: (n, d), n of 2 or more.
        second: (m, d), likewise.

    Raises:
        ValueError: as ``gaussian`` and ``frechet``.
    """
    x, y = _checked(first), _checked(second)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} numbers do not compare")
    return _within(x) + _within(y) - 2 * float(_kernel(x, y).mean())


def _within(rows: Array) -> float:
    """Mean of the kernel over all pairs of different rows."""
    values, n = _kernel(rows, rows), len(rows)
    return float(values.sum() - np.trace(values)) / (n * (n - 1))


def _kernel(x: Array, y: Array) -> Array:
    values: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _root(covariance: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _checked(features: NDArray[np.floating]) -> Array:
    """``features`` in float64, if they are a set of them."""
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(f"features are (n, d) with n of 2 or more, got {features.shape}")
    rows: Array = features.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("a feature is not a finite number")
    return rows
