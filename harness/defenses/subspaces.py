"""SAFREE's algebra: which tokens of a prompt lead to a concept, and what takes their place; pure functions.

Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation" (ICLR 2025),
Eq. 2 to 8. Vectors are rows; everything about text is computed in float64 on the CPU. A subspace is held as an
orthonormal basis, so that its projector is ``basis.T @ basis``: equal to C (C^T C)^+ C^T and stable where
embeddings are nearly parallel, as those of one prompt with one token masked are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def basis(vectors: Tensor) -> Tensor:
    """An orthonormal basis, (rank, width) float64, of what ``vectors`` (n, width) span.

    Directions within float32's rounding of the others are none of their own: what an encoder computed in float32
    twice would otherwise span a plane.
    """
    import torch

    rows = vectors.detach().to("cpu", torch.float64)
    _, scales, directions = torch.linalg.svd(rows, full_matrices=False)
    smallest = scales[0] * max(rows.shape) * torch.finfo(torch.float32).eps
    chosen: Tensor = directions[scales > smallest]
    return chosen


def along(vectors: Tensor, subspace: Tensor) -> Tensor:
    """The part of each of ``vectors`` (n, width) that lies in a subspace, given by its basis (rank, width)."""
    return vectors @ subspace.T @ subspace


def away(vectors: Tensor, subspace: Tensor) -> Tensor:
    """The part of each of ``vectors`` (n, width) that is orthogonal to a subspace, given by its basis (rank, width)."""
    return vectors - along(vectors, subspace)


def triggers(masked: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """Which tokens lead the prompt to the concept (Eq. 2 to 4).

    Args:
        masked: (k, width), summary of the prompt with one of its k tokens masked; row i lacks token i.
        concept: basis of the concept's subspace, (rank, width).
        alpha: share by which the prompt without a token must lie farther from the concept than without another.

    Returns:
        (k,) bool. A prompt of one token has none to be compared with, so that the token is none.
    """
    import torch

    distances = torch.linalg.vector_norm(away(masked, concept), dim=1)
    if len(distances) < 2:
        return torch.zeros(len(distances), dtype=torch.bool)
    others = (distances.sum() - distances) / (len(distances) - 1)
    is_trigger: Tensor = distances >= (1 + alpha) * others
    return is_trigger


def projected(states: Tensor, prompt: Tensor, concept: Tensor, order: str) -> Tensor:
    """``states`` (n, width) without the concept but within the prompt's own subspace (Eq. 5).

    Args:
        states: the prompt's tokens as the denoiser sees them.
        prompt: basis of the prompt's subspace.
        concept: basis of the concept's.
        order: ``released``, (I - P_C) P_I e, or ``paper``, P_I (I - P_C) e; the two projectors do not commute.
    """
    if order == "paper":
        return along(away(states, concept), prompt)
    return away(along(states, prompt), concept)


def last_step(states: Tensor, changed: Tensor, most: int, midpoint: float, sharpness: float) -> int:
    """The last step, counted from 0, that draws from the changed tokens (Eq. 6).

    Args:
        states: (n, width), the prompt's tokens.
        changed: (n, width), the same after projection.
        most: bound of the result.
        midpoint: of the sigmoid, in tenths of a cosine distance.
        sharpness: of the sigmoid.
    """
    import torch

    distance = 1 - float(torch.nn.functional.cosine_similarity(states, changed, dim=1).mean())
    slope = 2 * sharpness * (10 * distance - midpoint)
    return round(most / (1 + math.exp(-max(min(slope, 700.0), -700.0))))


def reattended(safe: Tensor, original: Tensor, scale: float, rule: str) -> Tensor:
    """Features drawn from changed text whose low frequencies stand back where they exceed the original's (Eq. 7, 8).

    Low are the four frequencies -1 and 0 of both axes. With ``released``, a coefficient whose real part is not below
    the original's becomes the number ``scale``; with ``paper``, one of greater magnitude is multiplied by it.

    Args:
        safe: (n, channels, height, width), features of the changed text.
        original: the same of the original text.
        scale: in [0, 1].
        rule: ``paper`` or ``released``.

    Returns:
        As ``safe``, in its dtype.
    """
    import torch

    ours, theirs = (torch.fft.fft2(x.float()) for x in (safe, original))
    low = torch.zeros(safe.shape[-2:], dtype=torch.bool, device=safe.device)
    for row in (0, -1):
        low[row, 0] = low[row, -1] = True
    if rule == "paper":
        weaker = torch.where(low & (ours.abs() > theirs.abs()), ours * scale, ours)
    else:
        weaker = torch.where(low & (ours.real >= theirs.real), torch.full_like(ours, scale), ours)
    changed: Tensor = torch.fft.ifft2(weaker).real.to(safe.dtype)
    return changed
