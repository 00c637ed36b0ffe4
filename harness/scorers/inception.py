"""Inception features of an image, 2,048 numbers, from which ``harness.metrics.frechet`` has the FID of a set.

How an image is brought to 299 x 299 pixels changes FID more than many methods do (Parmar et al. 2022, CVPR):

- ``clean``: bicubic with antialiasing, each channel in float32, kept in [0, 255] (clean-fid's default, which MACE, RECE
  and GLoCE call);
- ``tensorflow``: bilinear as TensorFlow 1 has it, without antialiasing (the original, torch-fidelity, torchmetrics).

Features, networks and ways to scale are never compared across. The weights are ``pt_inception-2015-12-05-6726825d.pth``
(91 MB, Apache-2.0, also published as ``weights-inception-2015-12-05-6726825d.pth``), in torch's cache or by path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import UserError, nearest
from harness.scorers import options
from harness.scorers._sources import cached, file, micro_batch
from harness.scorers.batching import Image, in_micro_batches

if TYPE_CHECKING:
    from torch import nn

FEATURES, SIZE = 2048, 299
COLUMNS: dict[str, pa.DataType] = {"inception_features": pa.list_(pa.float32(), FEATURES)}
PAIR = False
LIBRARIES = ("torch", "pillow", "numpy")
MICRO_BATCH = 8
RESIZES = ("clean", "tensorflow")
DEFAULTS: dict[str, Any] = {"weights": None, "resize": "clean", "micro_batch": MICRO_BATCH, "device": "cpu"}
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")  # in torch's cache
_HOW = f"download https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAMES[0]} to there"

Plane = NDArray[np.float32]
Pixels = NDArray[np.float32]  # (3, 299, 299) in [-1, 1)


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The network's file.

    Raises:
        UserError: an unknown parameter, or no such file.
    """
    given = options("inception", params, DEFAULTS)["weights"]
    return [file("inception", "weights", given or cached(*NAMES), _HOW)]


def load(params: Mapping[str, Any]) -> Inception:
    """The network in memory.

    Raises:
        UserError: an unknown parameter or way to scale, a missing file, a file of another network.
    """
    chosen = options("inception", params, DEFAULTS)
    resize = chosen["resize"]
    if resize not in RESIZES:
        known = ", ".join(RESIZES)
        raise UserError(f"scorer 'inception': unknown resize {resize!r}{nearest(str(resize), RESIZES)} ({known})")
    size = micro_batch("inception", chosen["micro_batch"])
    (path,) = weights(params)
    from harness.scorers import _inception_net

    return Inception(_inception_net.load(path), resize, size, chosen["device"])


class Inception:
    """A loaded network.

    Args:
        network: from (n, 3, 299, 299) in [-1, 1) to (n, 2048).
        resize: one of RESIZES.
        micro_batch: images it sees at once.
        device: where it runs.
    """

    def __init__(self, network: nn.Module, resize: str, micro_batch: int = MICRO_BATCH, device: str = "cpu") -> None:
        import torch

        self._torch, self._device, self._network = torch, device, network.to(device)
        self._scaled = {"clean": clean, "tensorflow": tensorflow}[resize]
        self.micro_batch = micro_batch

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Any]]:
        return in_micro_batches("inception", images, self.prepare, self._compute, self.micro_batch)

    def prepare(self, image: Image) -> Pixels:
        """The network's input."""
        planes = np.stack([self._scaled(image[..., i].astype(np.float32)) for i in range(3)])
        return (planes - np.float32(128)) / np.float32(128)

    def _compute(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        with self._torch.inference_mode():
            features = self._network(self._torch.from_numpy(np.stack(batch)).to(self._device)).float().cpu().numpy()
        return [
            {"inception_features": row.tolist()} if np.isfinite(row).all() else {"inception_error": "not-finite"}
            for row in features
        ]


def clean(plane: Plane) -> Plane:
    """One channel, in grey levels from 0 to 255, at 299 x 299 as clean-fid scales it."""
    import PIL.Image

    scaled = PIL.Image.fromarray(plane).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
    return np.asarray(scaled).clip(0, 255)


def tensorflow(plane: Plane) -> Plane:
    """One channel at 299 x 299 as TensorFlow 1 scales it: places start at the corner, and two by two are mixed."""
    (top, bottom, down), (left, right, across) = (_places(size) for size in plane.shape)
    upper = plane[top][:, left] + (plane[top][:, right] - plane[top][:, left]) * across
    lower = plane[bottom][:, left] + (plane[bottom][:, right] - plane[bottom][:, left]) * across
    mixed: Plane = upper + (lower - upper) * down[:, None]
    return mixed


def _places(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Plane]:
    """Of each of 299 places: the pixels before and after it, and how far it lies from the first to the second."""
    where = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
    before = where.astype(np.intp)
    return before, np.minimum(before + 1, size - 1), (where - before).astype(np.float32)
