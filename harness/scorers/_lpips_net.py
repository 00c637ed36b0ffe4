"""LPIPS's networks: torchvision's AlexNet and VGG-16 up to their last convolution, and learned heads. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from harness.errors import UserError

# Of inputs in [-1, 1]: ImageNet's mean and deviation, rounded as LPIPS has them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # layers whose outputs are compared: ReLUs


class Lpips(nn.Module):
    """Distances of images, (n,) float64, from two (n, 3, h, w) tensors in [-1, 1] (eq. 1 of the paper).

    Args:
        net: "alex" or "vgg".
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        self.taps = TAPS[net]
        self.trunk = _trunk(net, self.taps[-1] + 1)
        channels = [_channels(self.trunk, tap) for tap in self.taps]
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(count)) for count in channels)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros(len(first), dtype=torch.float64, device=first.device)
        for head, a, b in zip(self.heads, self.features(first), self.features(second), strict=True):
            weighed = ((a - b) ** 2 * head[:, None, None]).sum(1)
            total += weighed.double().mean((1, 2))
        return total

    def features(self, images: Tensor) -> list[Tensor]:
        """The activations at the five layers that are compared, each normalised to length 1 along the channels."""
        taps, x = [], (images - self.shift) / self.scale
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in self.taps:
                taps.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + EPSILON))
        return taps


def load(net: str, trunk: Path, heads: Path) -> Lpips:
    """The network with the published weights.

    Args:
        net: "alex" or "vgg".
        trunk: torchvision's file of the whole network; its classifier is left out.
        heads: the package lpips's.

    Raises:
        UserError: a file is none of weights, or of another network's.
    """
    model = Lpips(net)
    convolutions = {name.removeprefix("features."): value for name, value in _read(trunk).items() if "features" in name}
    _fill(model.trunk, convolutions, trunk, net)
    learned = _read(heads)
    names = {f"lin{i}.model.1.weight": str(i) for i in range(len(model.heads))}
    if any(value.ndim != 4 for value in learned.values()):
        raise UserError(f"{heads}: no heads of LPIPS")
    _fill(model.heads, {names.get(name, name): value[0, :, 0, 0] for name, value in learned.items()}, heads, net)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; nothing else of it is loaded."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Unpickling garbage raises almost anything.
    except Exception as error:
        raise UserError(f"{path}: no weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no weights by name")
    return state


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path, net: str) -> None:
    try:
        module.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of {net!r}: {error}") from error


def _trunk(net: str, layers: int) -> nn.Sequential:
    """The first layers of torchvision's network, without storage for weights: ``load`` puts the file's tensors in."""
    from torchvision import models

    with torch.device("meta"):  # the classifiers would be half a gigabyte of random numbers
        features = {"alex": models.alexnet, "vgg": models.vgg16}[net](weights=None).features
    assert isinstance(features, nn.Sequential)
    return features[:layers]


def _channels(trunk: nn.Sequential, tap: int) -> int:
    convolution = trunk[tap - 1]
    assert isinstance(convolution, nn.Conv2d)
    return convolution.out_channels
