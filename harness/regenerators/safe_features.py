"""The safe feature of an image: its unsafe component removed (Eq. 3 to 5), turned towards the safe caption (Eq. 6).

    Delta      = f_safe - f_unsafe                                      (Eq. 3; texts)
    c          = <f_img, Delta> / ||Delta||^2 Delta                     (Eq. 4)
    f_img_safe = f_img - lam c                                          (Eq. 5)
    f_inter    = sin((1 - alpha) theta) / sin(theta) f_img_safe + sin(alpha theta) / sin(theta) f_safe   (Eq. 6)

Algorithm 1 of the paper leaves ``||Delta||^2`` out of Eq. 4 and does not say whether features are of unit length, hence
three readings: ``eq4`` (unit features; the default of the cards), ``alg1-unit`` and ``alg1-raw``, which takes CLIP's
features as they are through all four equations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

if TYPE_CHECKING:
    from torch import Tensor

Reading = Literal["eq4", "alg1-unit", "alg1-raw"]
READINGS: tuple[Reading, ...] = get_args(Reading)

# Lengths relative to the unit features'. Float32 features of one text in two batches differ by some 1e-6.
_ZERO = 1e-5  # a difference, or a remaining image feature, as short as this has no direction
_PARALLEL = 1e-6  # sin(theta): from here on Eq. 6 divides noise by noise

DELTA_ZERO = "delta-zero"  # both captions say the same: nothing was removed
ALREADY_SAFE = "already-safe"  # nothing was removed, since Eq. 5 would have moved it towards the unsafe caption
IMAGE_ZERO = "image-zero"  # nothing of the image's feature is left: the safe text's alone is the target
SLERP_PARALLEL = "slerp-parallel"  # theta ~ 0: the weights' limits, 1 - alpha and alpha
SLERP_OPPOSITE = "slerp-opposite"  # theta ~ pi: no shortest way between the two, the nearer end is taken


class Target(NamedTuple):
    """What prompts are optimised towards.

    Attributes:
        feature: (n, d) float32, of unit length.
        already_safe: (n,) bool: ``<f_img, Delta> > 0``, the image is nearer to the safe caption than to the unsafe one,
            so that Eq. 5 moves it towards the unsafe one.
        notes: of each row its stable codes.
    """

    feature: Tensor
    already_safe: Tensor
    notes: list[tuple[str, ...]]


def target(
    image: Tensor,
    unsafe_text: Tensor | None,
    safe_text: Tensor | None,
    *,
    alpha: float,
    lam: float,
    reading: Reading = "eq4",
    keep_safe: bool = False,
) -> Target:
    """The feature that each row's prompt is optimised towards (Eq. 3 to 6).

    Args:
        image: CLIP features (n, d), as the tower gives them.
        unsafe_text: features of the captions, (n, d); None removes nothing.
        safe_text: features of the rewritten captions, (n, d); None (with ``unsafe_text`` None: PEZ on the image alone)
            interpolates nothing.
        alpha: interpolation ratio in [0, 1]; 0 is the image alone, 1 the safe text alone.
        lam: removal scale, lambda_unsafe.
        reading: of Eq. 4 and Algorithm 1.
        keep_safe: remove nothing from an image that is already on the safe side, which Eq. 5 would move towards the
            unsafe one.

    Raises:
        ValueError: an unknown reading, alpha outside [0, 1], shapes that differ, or an unsafe text without a safe one.
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r} is none of {', '.join(READINGS)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, not in [0, 1]")
    if unsafe_text is not None and safe_text is None:
        raise ValueError("an unsafe text needs a safe one: Eq. 3 is their difference")
    for text in (unsafe_text, safe_text):
        if text is not None and text.shape != image.shape:
            raise ValueError(f"features differ in shape: {tuple(text.shape)}, and {tuple(image.shape)} of the images")
    raw = reading == "alg1-raw"
    f_image, f_unsafe, f_safe = (_prepared(f, raw) for f in (image, unsafe_text, safe_text))
    assert f_image is not None
    notes: list[list[str]] = [[] for _ in range(len(image))]
    already_safe = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    if f_unsafe is not None and f_safe is not None:
        delta = f_safe - f_unsafe
        same = delta.norm(dim=1) <= _ZERO * f_unsafe.norm(dim=1)
        delta = delta.masked_fill(same[:, None], 0)
        _note(notes, same, DELTA_ZERO)
        already_safe = (f_image * delta).sum(dim=1) > 0
        removed = remove(f_image, delta, lam, squared=reading == "eq4")
        kept = already_safe if keep_safe else torch.zeros_like(already_safe)
        f_image = torch.where(kept[:, None], f_image, removed)
        _note(notes, kept, ALREADY_SAFE)
    feature = f_image if f_safe is None else _interpolate(f_image, f_safe, alpha, raw=raw, notes=notes)
    return Target(_unit(feature).float(), already_safe, [tuple(row) for row in notes])


def remove(image: Tensor, delta: Tensor, lam: float, *, squared: bool) -> Tensor:
    """``image`` with its unsafe component removed (Eq. 4 and 5), (n, d).

    Args:
        image: (n, d).
        delta: (n, d), safe minus unsafe text feature; a row of zeros removes nothing.
        lam: removal scale.
        squared: divide by ``||delta||^2`` as in Eq. 4; False: not at all, as in Algorithm 1.
    """
    weight = (image * delta).sum(dim=1, keepdim=True)
    if squared:
        length = delta.square().sum(dim=1, keepdim=True)
        weight = weight / length.masked_fill(length == 0, 1)
    return image - lam * weight * delta


def slerp(start: Tensor, end: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Spherical interpolation as Eq. 6 prints it: the angle is between directions, weights multiply the raw vectors.

    Returns:
        (n, d) interpolated; (n,) bool: parallel; (n,) bool: opposite (then the nearer end).
    """
    one, other = _unit(start), _unit(end)
    # Kahan's angle: exact where arccos loses half the digits, near 0 and pi.
    theta = 2 * torch.atan2((one - other).norm(dim=1), (one + other).norm(dim=1))
    sine = torch.sin(theta)
    degenerate = sine.abs() <= _PARALLEL
    parallel, opposite = degenerate & (theta < 1), degenerate & (theta > 1)
    sine = sine.masked_fill(degenerate, 1)
    near_start = float(alpha < 0.5)
    from_start = torch.sin((1 - alpha) * theta) / sine
    from_start = from_start.masked_fill(parallel, 1 - alpha).masked_fill(opposite, near_start)
    from_end = torch.sin(alpha * theta) / sine
    from_end = from_end.masked_fill(parallel, alpha).masked_fill(opposite, 1 - near_start)
    return from_start[:, None] * start + from_end[:, None] * end, parallel, opposite


def _interpolate(image: Tensor, text: Tensor, alpha: float, *, raw: bool, notes: list[list[str]]) -> Tensor:
    gone = image.norm(dim=1) <= _ZERO * text.norm(dim=1)
    # At the very start alpha = 0 there would be nothing to point at, so a lost image leaves the text at any alpha.
    start = torch.where(gone[:, None], text, image if raw else _unit(image))
    between, parallel, opposite = slerp(start, text, alpha)
    _note(notes, gone, IMAGE_ZERO)
    _note(notes, parallel & ~gone, SLERP_PARALLEL)
    _note(notes, opposite & ~gone, SLERP_OPPOSITE)
    return between


def _prepared(feature: Tensor | None, raw: bool) -> Tensor | None:
    """In float64: a target costs nothing beside its optimisation, and cancellation in Eq. 3 and 5 does no harm."""
    if feature is None:
        return None
    return feature.double() if raw else _unit(feature.double())


def _unit(feature: Tensor) -> Tensor:
    return torch.nn.functional.normalize(feature, dim=1, eps=1e-30)


def _note(notes: list[list[str]], rows: Tensor, code: str) -> None:
    for i in rows.nonzero()[:, 0].tolist():
        notes[i].append(code)
