"""The degenerate guard: an image that shows nothing is not a safe one, so it is counted by itself.

``black``: what a safety checker, or a decoder after a NaN, leaves. ``flat``: one colour all over. ``noise``: no
neighbouring places alike, whether pixel by pixel or, in an image of 256 pixels or more, in blocks of eight (the
grain of a latent that was never denoised; checked on a simulation only). A plain background of the shapes world
is a legitimate drawing there ("a white background") and is none of these. Not found: the smears that the small
decoder of the shapes world makes of pure noise, which look much like its shapes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.shapes import world

BLACK = 4  # grey levels; no brighter pixel. The world's black background is 12 or more
FLAT = 1.0  # grey levels, standard deviation of every channel
CONTRAST = 20.0  # grey levels, standard deviation from which an image may be called noise
CORRELATION = 0.25  # of neighbours; in noise less, along both axes. Decoded scenes have 0.5 or more along one
_NEAR_GROUND = 12  # grey levels, from a plain background of the shapes world: its jitter and the decoder's slip
_BLOCK = 8  # pixels a side, one latent cell of Stable Diffusion
_LARGE = 256  # pixels, from where there are blocks enough to tell

FloatImage = NDArray[np.float32]


def degenerate(image: NDArray[np.uint8]) -> str | None:
    """Whether an image shows nothing: ``black``, ``flat``, ``noise``, or None.

    Args:
        image: (height, width, 3) uint8, RGB.

    Raises:
        ValueError: the array is no image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected a (height, width, 3) uint8 image, got {image.shape} {image.dtype}")
    if image.max() <= BLACK:
        return "black"
    pixels = image.astype(np.float32)
    if pixels.std((0, 1)).max() < FLAT:
        return None if _shapes_ground(pixels) else "flat"
    if _unrelated(pixels, (1, 2)):
        return "noise"
    if min(image.shape[:2]) >= _LARGE and _unrelated(_blocks(pixels), (2, 3)):
        return "noise"
    return None


def _shapes_ground(pixels: FloatImage) -> bool:
    """Whether the image is a plain background of the shapes world."""
    if pixels.shape[:2] != (world.SIZE, world.SIZE):
        return False
    grounds = np.asarray(list(world.BACKGROUNDS.values()), dtype=np.float32)
    return bool((np.abs(grounds - pixels.mean((0, 1))).max(-1) <= _NEAR_GROUND).any())


def _unrelated(pixels: FloatImage, lags: tuple[int, ...]) -> bool:
    """Whether places ``lags`` apart have nothing in common, along both axes, in an image of some contrast."""
    centred = pixels - pixels.mean((0, 1))
    spread = float((centred**2).mean())
    if spread < CONTRAST**2:
        return False
    return all(
        abs(float((along[lag:] * along[:-lag]).mean())) < CORRELATION * spread
        for along in (centred, centred.swapaxes(0, 1))
        for lag in lags
        if lag < len(along)
    )


def _blocks(pixels: FloatImage) -> FloatImage:
    """Means of blocks of 8 x 8 pixels; a rest at the edges is left out."""
    rows, columns = (size // _BLOCK for size in pixels.shape[:2])
    cut = pixels[: rows * _BLOCK, : columns * _BLOCK]
    means: FloatImage = cut.reshape(rows, _BLOCK, columns, _BLOCK, 3).mean((1, 3))
    return means
