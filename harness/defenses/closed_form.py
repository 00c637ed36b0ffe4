"""Closed-form edits of linear maps that read text embeddings; pure functions over tensors.

Rows are embeddings: keys (n, width) hold one key each, a weight (rows, width) maps a key k to W k.
Everything is computed in float64, whatever comes in. Rows of a weight do not interact, so that several
matrices over the same embeddings may be stacked and edited at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


SINGULAR = 1e14  # condition number above which float64 solves for noise


class Scales(NamedTuple):
    """How much each term of the edit weighs."""

    stay: float  # lambda: towards the old weight, >= 0
    erase: float  # s: keys take their wanted values
    preserve: float  # p: preserved keys keep theirs


def gram(keys: Tensor) -> Tensor:
    """Sum of k k^T over ``keys`` (n, width): (width, width) float64."""
    keys = keys.double()
    total: Tensor = keys.T @ keys
    return total


def edit(
    weight: Tensor, keys: Tensor, values: Tensor, preserved: Tensor, scales: Scales, original: Tensor | None = None
) -> Tensor:
    """The weight that maps ``keys`` to the wanted ``values`` and changes as little as possible otherwise.

    Minimises  erase sum |W' k - v|^2 + preserve sum |W' r - W0 r|^2 + stay |W' - W|^2  by

        W' = (stay W + erase sum v k^T + preserve W0 R) (stay I + erase sum k k^T + preserve R)^-1

    with R the sum of r r^T (Gandikota et al. 2024, UCE, Eq. 7; Orgad et al. 2023, TIME; Lu et al. 2024, MACE, Eq. 3
    and 6). Computed as the change

        W' - W = (erase sum (v - W k) k^T + preserve (W0 - W) R) (stay I + erase sum k k^T + preserve R)^-1

    which is the same, costs a tenth when keys are few, and is exactly zero where nothing is asked for.

    Args:
        weight: W, (rows, width).
        keys: (n, width).
        values: (n, rows), wanted for each key.
        preserved: R, (width, width), from ``gram``.
        scales: weights of the three terms.
        original: W0, (rows, width), whose answers the preserved keys keep; None: ``weight`` itself.

    Returns:
        W', (rows, width) float64.

    Raises:
        ValueError: the solution is not unique, as where ``stay`` is zero and the keys do not span the width.
    """
    import torch

    weight, keys, values, preserved = weight.double(), keys.double(), values.double(), preserved.double()
    identity = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    resistance = scales.stay * identity + scales.erase * gram(keys) + scales.preserve * preserved
    if scales.stay <= 0 and float(torch.linalg.cond(resistance)) > SINGULAR:
        raise ValueError(f"the edit is not unique: stay is {scales.stay}, and the keys do not span all embeddings")
    reach: Tensor = torch.linalg.solve(resistance, keys.T)  # (width, n)
    change = scales.erase * (values - keys @ weight.T).T @ reach.T
    if original is not None:
        change = change + scales.preserve * torch.linalg.solve(resistance, preserved @ (original.double() - weight).T).T
    return weight + change


def remove_direction(values: Tensor, unwanted: Tensor) -> Tensor:
    """``values`` minus their projection on ``unwanted``; both (n, rows), each flattened to one vector for this."""
    import torch

    direction: Tensor = unwanted / torch.linalg.vector_norm(unwanted)
    return values - (direction * values).sum() * direction


def recover(edited: Tensor, original: Tensor, concept: Tensor, reg: float) -> Tensor:
    """The embeddings that make an edited map answer as the original does to ``concept``.

    Minimises  |edited c - original c0|^2 + reg |c|^2  for each row c0 of ``concept`` by

        c = (reg I + edited^T edited)^-1 edited^T original c0

    (Gong et al. 2024, RECE, Eq. 8 and 10; the matrices of all layers stacked).

    Args:
        edited: (rows, width).
        original: (rows, width).
        concept: (n, width).
        reg: > 0; small embeddings are preferred.

    Returns:
        (n, width) float64.
    """
    import torch

    edited, original, concept = edited.double(), original.double(), concept.double()
    identity = torch.eye(edited.shape[1], dtype=torch.float64, device=edited.device)
    solved: Tensor = torch.linalg.solve(reg * identity + gram(edited), edited.T @ (original @ concept.T))
    return solved.T
