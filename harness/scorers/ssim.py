"""SSIM to the reference image (Wang et al. 2004, IEEE Trans. Image Process. 13:600, eq. 13).

Computed by scikit-image with the paper's settings: Gaussian window of 11 x 11 pixels, sigma 1.5, population moments,
K1 = 0.01, K2 = 0.03, mean over the places where the window lies inside the image. ``ssim_rgb`` is the mean of the three
channels; torchmetrics has the same there, but also counts the border, where it reflects the images (0.001 of difference
in a test). ``ssim_grey`` is of the luminance (ITU-R BT.601, not rounded), on which the paper's own code works. 1 for
equal images. ReSafe's Table 12 does not say which of the two it prints. Nothing is resized, so a reference of another
size has no score.
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
LIBRARIES = ("numpy", "scipy", "scikit-image")
MICRO_BATCH = 1

SIGMA = 1.5  # pixels
WINDOW = 11  # pixels, side of the window: sigma cut off at 3.5 deviations
LUMINANCE = (0.299, 0.587, 0.114)

Pixels = NDArray[np.float64]  # (height, width) or (height, width, channels), levels from 0 to 255


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
    """The measure."""

    def __init__(self) -> None:
        from skimage.metrics import structural_similarity

        self._similarity = structural_similarity

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        return pairs_in_micro_batches("ssim", images, references, _same_size, self._compute, MICRO_BATCH)

    def _compute(self, pairs: list[tuple[Image, Image]]) -> list[dict[str, Any]]:
        return [self._row(*pair) for pair in pairs]

    def _row(self, image: Image, reference: Image) -> dict[str, Any]:
        first, second = (pixels.astype(np.float64) for pixels in (image, reference))
        return {
            "ssim_rgb": self._index(first, second, channel_axis=2),
            "ssim_grey": self._index(first @ LUMINANCE, second @ LUMINANCE),
        }

    def _index(self, first: Pixels, second: Pixels, channel_axis: int | None = None) -> float:
        """Mean SSIM of two images of one size, over channels where there are several."""
        return float(
            self._similarity(
                first,
                second,
                data_range=255,
                gaussian_weights=True,
                sigma=SIGMA,
                win_size=WINDOW,
                use_sample_covariance=False,
                channel_axis=channel_axis,
            )
        )


def _same_size(image: Image, reference: Image) -> tuple[Image, Image]:
    """The pair.

    Raises:
        RowError: ``sizes-differ``; ``image-size``, smaller than the window.
    """
    if image.shape != reference.shape:
        raise RowError("sizes-differ", f"{image.shape} and {reference.shape}")
    if min(image.shape[:2]) < WINDOW:
        raise RowError("image-size", f"{image.shape}, smaller than the window")
    return image, reference
