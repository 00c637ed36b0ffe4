"""LPIPS 0.1 to the reference image (Zhang et al. 2018, CVPR): 0 for equal images, larger is less alike.

Both images are scaled to ``size`` x ``size`` (nothing happens at their own size) and to [-1, 1]. At five depths of
an ImageNet network, features are normalised along the channels; their squared differences are weighed by learned
heads, averaged over places and summed over depths. ``lpips_alex`` and ``lpips_vgg`` are by AlexNet and VGG-16; a
network that ``nets`` does not name leaves its column null.

ReSafe states neither network nor size (default: alex, 512). RECE and AdvUnlearn compare at size 64, the one scaling
with OpenCV (``resize: opencv``), the other with Pillow (``pillow``); these figures do not compare with those at 512.

The trunks are torchvision's, with its files of weights in torch's cache or by path; the learned heads are those of the
package lpips (0.1.4, BSD-2-Clause), which is not imported: it would download trunks by itself, unpinned.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import UserError, nearest
from harness.scorers import options
from harness.scorers._sources import cached, file, micro_batch
from harness.scorers.batching import Image, pairs_in_micro_batches

if TYPE_CHECKING:
    from torch import nn

NETS = ("alex", "vgg")
COLUMNS: dict[str, pa.DataType] = {f"lpips_{net}": pa.float32() for net in NETS}
PAIR = True
LIBRARIES = ("torch", "torchvision", "lpips", "pillow", "opencv-python-headless", "numpy")
MICRO_BATCH = 4
RESIZES = ("pillow", "opencv")  # bilinear, the one averaging over what it skips and the other not
DEFAULTS: dict[str, Any] = {
    "nets": ["alex"],
    "size": 512,  # pixels, side of what is compared
    "resize": "pillow",
    "trunk_alex": None,  # path of torchvision's file; null: in torch's cache
    "trunk_vgg": None,
    "heads": None,  # folder with alex.pth and vgg.pth; null: in the package lpips
    "micro_batch": MICRO_BATCH,
    "device": "cpu",
}
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}  # in torch's cache
SMALLEST = {"alex": 31, "vgg": 16}  # pixels: less leaves the last depth without a place

Pixels = NDArray[np.float32]


def weights(params: Mapping[str, Any]) -> list[Path]:
    """Trunk and heads of every network that is asked for.

    Raises:
        UserError: an unknown parameter or network, or a file that is missing, with how to get it.
    """
    chosen = options("lpips", params, DEFAULTS)
    return [path for net in _nets(chosen["nets"]) for path in (_trunk(chosen, net), _heads(chosen["heads"], net))]


def load(params: Mapping[str, Any]) -> Lpips:
    """The networks in memory.

    Raises:
        UserError: as ``weights``; an unknown way to scale, a size that is too small, files of other networks.
    """
    chosen = options("lpips", params, DEFAULTS)
    nets, size, resize = _nets(chosen["nets"]), chosen["size"], chosen["resize"]
    if resize not in RESIZES:
        known = ", ".join(RESIZES)
        raise UserError(f"scorer 'lpips': unknown resize {resize!r}{nearest(str(resize), RESIZES)} ({known})")
    least = max(SMALLEST[net] for net in nets)
    if not isinstance(size, int) or isinstance(size, bool) or size < least:
        raise UserError(f"scorer 'lpips': size is {size!r}, not a whole number of {least} or more")
    batch = micro_batch("lpips", chosen["micro_batch"])
    files = {net: (_trunk(chosen, net), _heads(chosen["heads"], net)) for net in nets}
    from harness.scorers import _lpips_net

    models = {net: _lpips_net.load(net, *paths) for net, paths in files.items()}
    return Lpips(models, size, resize, batch, chosen["device"])


class Lpips:
    """Loaded networks.

    Args:
        models: by name; of two (n, 3, size, size) tensors in [-1, 1] to (n,) distances.
        size: pixels, side of what is compared.
        resize: one of RESIZES.
        micro_batch: pairs they see at once.
        device: where they run.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        size: int,
        resize: str,
        micro_batch: int = MICRO_BATCH,
        device: str = "cpu",
    ) -> None:
        import torch

        self._torch, self._device = torch, device
        self.size, self.resize, self.micro_batch = size, resize, micro_batch
        self._models = {name: model.to(device) for name, model in models.items()}

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        return pairs_in_micro_batches("lpips", images, references, self._prepare, self._compute, self.micro_batch)

    def _prepare(self, image: Image, reference: Image) -> tuple[Image, Image]:
        return self._scaled(image), self._scaled(reference)  # as bytes: a shard's images wait together

    def pixels(self, image: Image) -> Pixels:
        """(3, size, size) in [-1, 1]."""
        return _normalised(self._scaled(image))

    def _scaled(self, image: Image) -> Image:
        side = (self.size, self.size)
        if image.shape[:2] == side:
            return image
        if self.resize == "opencv":
            import cv2

            return np.asarray(cv2.resize(image, side), np.uint8)
        import PIL.Image

        return np.asarray(PIL.Image.fromarray(image).resize(side, PIL.Image.Resampling.BILINEAR))

    def _compute(self, pairs: list[tuple[Image, Image]]) -> list[dict[str, Any]]:
        torch = self._torch
        stacks = (np.stack([_normalised(pair[side]) for pair in pairs]) for side in (0, 1))
        sides = [torch.from_numpy(stack).to(self._device) for stack in stacks]
        with torch.inference_mode():
            distances = {f"lpips_{name}": model(*sides).tolist() for name, model in self._models.items()}
        rows = [dict(zip(distances, values, strict=True)) for values in zip(*distances.values(), strict=True)]
        return [row if np.isfinite(list(row.values())).all() else {"lpips_error": "not-finite"} for row in rows]


def _normalised(image: Image) -> Pixels:
    return image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)


def _nets(given: object) -> list[str]:
    """The networks that are asked for, in the order of NETS.

    Raises:
        UserError: none, or one that is unknown.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names:
        raise UserError(f"scorer 'lpips': nets is {given!r}, not a list of {', '.join(NETS)}")
    for name in names:
        if name not in NETS:
            raise UserError(f"scorer 'lpips': unknown net {name!r}{nearest(str(name), NETS)} ({', '.join(NETS)})")
    return [net for net in NETS if net in names]


def _trunk(chosen: Mapping[str, Any], net: str) -> Path:
    """The ImageNet weights of a network."""
    name = TRUNKS[net]
    given = chosen[f"trunk_{net}"] or cached(name)
    return file("lpips", f"trunk_{net}", given, f"download https://download.pytorch.org/models/{name} to there")


def _heads(folder: object, net: str) -> Path:
    """The learned heads of a network."""
    if folder is None:
        spec = importlib.util.find_spec("lpips")  # located, not imported
        if spec is None or not spec.submodule_search_locations:
            raise UserError("scorer 'lpips' needs the heads of the package lpips: pip install 'lpips==0.1.4'")
        folder = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1"
    return file("lpips", "heads", Path(str(folder)) / f"{net}.pth", "the package lpips has it in weights/v0.1")
