"""GLoCE's closed forms: statistics of features, an edit between two subspaces, and the gate that opens it.

Pure functions over tensors. A feature is a row of width d; everything is computed in float64, whatever comes in.
Lee et al., "Localized Concept Erasure for Text-to-Image Diffusion Models Using Training-Free Gated Low-Rank
Adaptation" (CVPR 2025), Sections 4.1 to 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = 3  # 2 x 2 average poolings that are counted beside the features themselves
SHARE = 0.99  # how open the gate is at the upper end of its slope; at the lower it is 1 - SHARE


class Moments(NamedTuple):
    """Mean (d) and covariance (d, d) of features, float64."""

    mean: Tensor
    covariance: Tensor


class Edit(NamedTuple):
    """What takes the place of a feature x: bias + restore reduce^T (x - debias). One concept, one layer."""

    reduce: Tensor  # (d, r): takes the target's directions away, and reads the rest along the surrogate's
    restore: Tensor  # (d, r): the surrogate's directions
    bias: Tensor  # (d): the surrogate's mean
    debias: Tensor  # (d): the target's mean


class Gate(NamedTuple):
    """What share of an edit a feature x gets: sigmoid(slope (|directions^T u|^2 - centre)), u along x - mean, unit."""

    directions: Tensor  # (d, r)
    mean: Tensor  # (d)
    centre: Tensor  # ()
    slope: Tensor  # ()


class FeatureSums:
    """Sums that ``Moments`` are made of, gathered batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Count ``features`` (n, d)."""
        rows = features.double()
        total, products = rows.sum(0), rows.T @ rows
        self._count += len(rows)
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products

    def moments(self) -> Moments:
        """Mean and covariance of all features that were counted.

        Raises:
            ValueError: nothing was counted.
        """
        import torch

        if self._sum is None or self._products is None:
            raise ValueError("no features were counted")
        mean = self._sum / self._count
        return Moments(mean, self._products / self._count - torch.outer(mean, mean))


def pyramid(features: Tensor, poolings: int = POOLINGS) -> Tensor:
    """The features of a square map at several scales, each place of each scale once.

    Args:
        features: (batch, pixels, d), the pixels of a square, row by row.
        poolings: 2 x 2 average poolings, at most; a map of odd side loses its last row and column, as torch pools,
            and one of a single pixel is pooled no further.

    Returns:
        (n, d): the features themselves, then those of each pooling.

    Raises:
        ValueError: the pixels form no square.
    """
    import torch

    batch, pixels, width = features.shape
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise ValueError(f"{pixels} pixels form no square")
    maps = features.transpose(1, 2).reshape(batch, width, side, side)
    scales = [maps]
    while len(scales) <= poolings and scales[-1].shape[-1] > 1:
        scales.append(torch.nn.functional.avg_pool2d(scales[-1], 2))
    return torch.cat([scale.flatten(2).transpose(1, 2).reshape(-1, width) for scale in scales])


def principal(covariance: Tensor, rank: int) -> Tensor:
    """The ``rank`` eigenvectors of the largest eigenvalues, as columns (d, rank); at most d.

    An eigenvector's sign is not determined; here its entry of largest magnitude is positive.
    """
    import torch

    _, vectors = torch.linalg.eigh(covariance.double())
    top = vectors.flip(1)[:, :rank]
    largest = top.gather(0, top.abs().argmax(0, keepdim=True))
    result: Tensor = top * torch.where(largest < 0, -1.0, 1.0)
    return result


def edit_between(target: Moments, surrogate: Moments, target_rank: int, surrogate_rank: int) -> Edit:
    """The edit that moves features of the target concept to where the surrogate's lie.

    x becomes m_s + V_s V_s^T (I - V_t V_t^T)(x - m_t), with means m and principal directions V.

    Args:
        target: of the features under the prompts of the concept that is erased.
        surrogate: of the features under the prompts that take its place.
        target_rank: directions of the target that are taken away.
        surrogate_rank: directions of the surrogate that the rest is read along.
    """
    removed = principal(target.covariance, target_rank)
    restore = principal(surrogate.covariance, surrogate_rank)
    return Edit(restore - removed @ (removed.T @ restore), restore, surrogate.mean, target.mean)


def gate_directions(target: Moments, neutral_mean: Tensor, rank: int) -> Tensor:
    """Directions (d, rank) along which features of the target leave the neutral ones.

    They are the principal ones of the target's second moment about ``neutral_mean``.
    """
    import torch

    offset = target.mean - neutral_mean
    return principal(target.covariance + torch.outer(offset, offset), rank)


def gate_score(features: Tensor, directions: Tensor, mean: Tensor) -> Tensor:
    """The share of each feature's offset from ``mean`` that lies along ``directions``: (..., d) to (...), in 0 to 1.

    In the features' own dtype. A feature that is the mean has no direction; its score is zero.
    """
    import torch

    unit = torch.nn.functional.normalize(features - mean, dim=-1)
    result: Tensor = (unit @ directions).square().sum(-1)
    return result


def gate(
    directions: Tensor, mean: Tensor, anchor_scores: Sequence[float], threshold: float, tolerance: float, relative: bool
) -> Gate:
    """The gate that stays shut for features like the anchors'.

    Its centre lies ``threshold`` standard deviations above the mean of the anchors' scores.

    Args:
        directions: (d, r).
        mean: (d), of the neutral features.
        anchor_scores: the highest score of each denoiser call over anchor prompts; two or more.
        threshold: tau, > 0.
        tolerance: half the width of the slope, as a share of ``threshold``; the gate is 99% open that far above its
            centre and 99% shut that far below.
        relative: measure ``tolerance`` in standard deviations of the anchors' scores, not in scores.

    Raises:
        ValueError: fewer than two scores.
    """
    import torch

    if len(anchor_scores) < 2:
        raise ValueError("a gate needs the scores of at least two anchors")
    scores = torch.tensor(list(anchor_scores), dtype=torch.float64)
    spread = scores.std().clamp(min=1e-12)  # equal scores: a step just above them
    half = tolerance * threshold * (spread if relative else torch.ones_like(spread))
    return Gate(directions, mean, scores.mean() + threshold * spread, math.log(SHARE / (1 - SHARE)) / half)
