"""Frechet distance between two sets of images, from the features of a network (``inception_features``).

Heusel et al. 2017 (NeurIPS, eq. 6): of two Gaussians with the sets' means and covariances,

    d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

It falls with the number of images (bias of order 1 / n), so only figures of equal n compare. Beside FID goes what was
compared: the reference set, the network, n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Gaussian(NamedTuple):
    """A set of features as its moments."""

    mean: Array  # (d,)
    factor: Array  # (d, r): the covariance, unbiased, is factor @ factor.T
    n: int

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Gaussian:
        """Moments of a set, in float64.

        Args:
            features: (n, d), n of 2 or more.

        Raises:
            ValueError: another shape, fewer than two rows, or a number that is not finite.
        """
        rows = _checked(features)
        n, d = rows.shape
        mean = rows.mean(0)
        centred = rows - mean
        # Up to d images are a factor themselves; of more, the covariance is smaller.
        factor = centred.T / np.sqrt(n - 1) if n <= d else _factor(centred.T @ centred / (n - 1))
        return cls(mean, factor, n)


def frechet(first: Gaussian, second: Gaussian) -> float:
    """Frechet distance of two Gaussians, squared (as FID is).

    With S1 = F1 F1' and S2 = F2 F2', the trace of (S1 S2)^(1/2) is the sum of the singular values of F1' F2: no square
    root of a matrix that is not symmetric, and right where n < d leaves the covariances singular.

    Raises:
        ValueError: features of different lengths.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of {len(first.mean)} and of {len(second.mean)} numbers do not compare")
    gap = first.mean - second.mean
    shared = np.linalg.norm(first.factor.T @ second.factor, "nuc")
    distance = gap @ gap + (first.factor**2).sum() + (second.factor**2).sum() - 2 * shared
    return max(0.0, float(distance))


def fid(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Frechet distance of two sets of features, (n, d) and (m, d).

    Raises:
        ValueError: as ``Gaussian.of`` and ``frechet``.
    """
    return frechet(Gaussian.of(first), Gaussian.of(second))


def _factor(covariance: Array) -> Array:
    """(d, r) of full rank whose product with its transpose is the positive semidefinite ``covariance``."""
    values, vectors = np.linalg.eigh(covariance)
    there = values > 0
    factor: Array = vectors[:, there] * np.sqrt(values[there])
    return factor


def _checked(features: NDArray[np.floating]) -> Array:
    """``features`` in float64, if they are a set of them."""
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(f"features are (n, d) with n of 2 or more, got {features.shape}")
    rows: Array = features.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("a feature is not a finite number")
    return rows
