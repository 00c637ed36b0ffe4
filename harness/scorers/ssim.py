"""SSIM to the reference image (Wang et al. 2004, IEEE Trans. Image Process. 13:600, eq. 13).

As in the paper: Gaussian window of 11 x 11 pixels, sigma 1.5, population moments, K1 = 0.01, K2 = 0.03, mean over the
places where the window lies inside the image. ``ssim_rgb`` is the mean of the three channels, as scikit-image has it
(``gaussian_weights``, ``use_sample_covariance=False``); torchmetrics has the same there, but also counts the border,
where it reflects the images (0.001 of difference in a test). ``ssim_grey`` is of the luminance (ITU-R BT.601, not
rounded), on which the paper's own code works. 1 for equal images. ReSafe's Table 12 does not say which; nothing is
resized, so a reference of another size has no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import RowError
from harness.scorers import options
from harness.scorers.batching import Image, pairs_in_micro_batches

COLUMNS: dict[str, pa.DataType] = {"ssim_rgb": pa.float32(), "ssim_grey": pa.float32()}
PAIR = True
LIBRARIES = ("numpy", "scipy")
MICRO_BATCH = 1

SIGMA = 1.5  # pixels
RADIUS = 5  # pixels; the window is 11 wide
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMINANCE = (0.299, 0.587, 0.114)

Plane = NDArray[np.float64]  # (height, width), grey levels from 0 to 255


def weights(params: Mapping[str, Any]) -> list[Path]:
    """No files: nothing is learned."""
    options("ssim", params, {})
    return []


def load(params: Mapping[str, Any]) -> Ssim:
    """The measure.

    Raises:
        UserError: a parameter; it has none.
    """
    options("ssim", params, {})
    return Ssim()


class Ssim:
    """The measure, with its window."""

    def __init__(self) -> None:
        from scipy import ndimage

        self._ndimage = ndimage
        window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
        self._window = window / window.sum()

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        return pairs_in_micro_batches("ssim", images, references, _same_size, self._compute, MICRO_BATCH)

    def _compute(self, pairs: list[tuple[Image, Image]]) -> list[dict[str, Any]]:
        return [self._row(*pair) for pair in pairs]

    def _row(self, image: Image, reference: Image) -> dict[str, Any]:
        first, second = (np.moveaxis(pixels.astype(np.float64), 2, 0) for pixels in (image, reference))
        channels = [self.index(a, b) for a, b in zip(first, second, strict=True)]
        grey = [np.tensordot(LUMINANCE, channels, 1) for channels in (first, second)]
        return {"ssim_rgb": sum(channels) / 3, "ssim_grey": self.index(*grey)}

    def index(self, first: Plane, second: Plane) -> float:
        """Mean SSIM of two planes of one size, at least 11 x 11."""
        mean1, mean2 = self._mean(first), self._mean(second)
        var1, var2 = self._mean(first * first) - mean1**2, self._mean(second * second) - mean2**2
        both = self._mean(first * second) - mean1 * mean2
        local = (2 * mean1 * mean2 + C1) * (2 * both + C2) / ((mean1**2 + mean2**2 + C1) * (var1 + var2 + C2))
        return float(local.mean())

    def _mean(self, plane: Plane) -> Plane:
        """Weighted means over every window that lies inside the plane: 10 rows and columns fewer."""
        rows = self._ndimage.correlate1d(plane, self._window, axis=0, mode="nearest")[RADIUS:-RADIUS]
        means: Plane = self._ndimage.correlate1d(rows, self._window, axis=1, mode="nearest")[:, RADIUS:-RADIUS]
        return means


def _same_size(image: Image, reference: Image) -> tuple[Image, Image]:
    """The pair.

    Raises:
        RowError: ``sizes-differ``; ``image-size``, smaller than the window.
    """
    if image.shape != reference.shape:
        raise RowError("sizes-differ", f"{image.shape} and {reference.shape}")
    if min(image.shape[:2]) <= 2 * RADIUS:
        raise RowError("image-size", f"{image.shape}, smaller than the window")
    return image, reference
