"""The Inception network of FID, up to its 2,048 features. Brings torch.

The one of TensorFlow's file of 2015-12-05 (Szegedy et al. 2016, as Heusel et al. 2017 use it), converted by pytorch-fid
and torch-fidelity (``pt_inception-2015-12-05-6726825d.pth``); names are those of that file. It is not torchvision's:
average pools leave out the padding, and the last block takes the maximum instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.errors import UserError

SIZE = 299  # pixels, side of the input
FEATURES = 2048


class Conv(NamedTuple):
    """One convolution of a branch; padded to keep the size where its stride is 1."""

    name: str
    channels: int  # out
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = Sequence[Conv | tuple[Conv, Conv]]  # one after the other; a pair works side by side


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, conv: Conv, *, padded: bool = True) -> None:
        super().__init__()
        padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if padded and conv.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, conv.channels, conv.kernel, conv.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(conv.channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, the pooled one last.

    Args:
        inputs: channels.
        branches: of convolutions.
        pool: of the last branch.
        pooled: channels of the convolution after the pool, None where there is none.
    """

    def __init__(self, inputs: int, branches: Sequence[Branch], pool: nn.Module, pooled: int | None) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            channels = inputs
            for step in branch:
                pair = (step,) if isinstance(step, Conv) else step
                for conv in pair:
                    self.add_module(conv.name, Unit(channels, conv))
                channels = sum(conv.channels for conv in pair)
        self.pool = pool
        self.branch_pool = nn.Identity() if pooled is None else Unit(inputs, Conv("branch_pool", pooled))

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for branch in self.branches:
            y = x
            for step in branch:
                pair = (step,) if isinstance(step, Conv) else step
                y = torch.cat([self.get_submodule(conv.name)(y) for conv in pair], 1)
            branches.append(y)
        return torch.cat([*branches, self.branch_pool(self.pool(x))], 1)


def network() -> nn.Sequential:
    """The untrained network: images (n, 3, 299, 299) in [-1, 1) to features (n, 2048)."""
    largest = nn.MaxPool2d(3, 2)
    layers = {
        "Conv2d_1a_3x3": Unit(3, Conv("", 32, (3, 3), 2)),
        "Conv2d_2a_3x3": Unit(32, Conv("", 32, (3, 3)), padded=False),
        "Conv2d_2b_3x3": Unit(32, Conv("", 64, (3, 3))),
        "MaxPool_1": largest,
        "Conv2d_3b_1x1": Unit(64, Conv("", 80)),
        "Conv2d_4a_3x3": Unit(80, Conv("", 192, (3, 3)), padded=False),
        "MaxPool_2": largest,
        "Mixed_5b": _a(192, 32),
        "Mixed_5c": _a(256, 64),
        "Mixed_5d": _a(288, 64),
        "Mixed_6a": _b(288),
        "Mixed_6b": _c(768, 128),
        "Mixed_6c": _c(768, 160),
        "Mixed_6d": _c(768, 160),
        "Mixed_6e": _c(768, 192),
        "Mixed_7a": _d(768),
        "Mixed_7b": _e(1280, _average()),
        "Mixed_7c": _e(2048, nn.MaxPool2d(3, 1, 1)),
        "AvgPool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def load(path: Path) -> nn.Sequential:
    """The network with the weights of a file; its classifier is left out.

    Raises:
        UserError: the file is none of weights, or of another network's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Unpickling garbage raises almost anything.
    except Exception as error:
        raise UserError(f"{path}: no weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no weights by name")
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    model = network()
    # How many batches the norms saw, which some copies of the file have and nothing here reads.
    state |= {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of FID's Inception: {error}") from error
    return model.eval().requires_grad_(False)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _a(inputs: int, pooled: int) -> Block:
    branches: list[Branch] = [
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
    ]
    return Block(inputs, branches, _average(), pooled)


def _b(inputs: int) -> Block:
    branches: list[Branch] = [
        [Conv("branch3x3", 384, (3, 3), 2)],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)],
    ]
    return Block(inputs, branches, nn.MaxPool2d(3, 2), None)


def _c(inputs: int, width: int) -> Block:
    across, along = (1, 7), (7, 1)
    branches: list[Branch] = [
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", width), Conv("branch7x7_2", width, across), Conv("branch7x7_3", 192, along)],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, along),
            Conv("branch7x7dbl_3", width, across),
            Conv("branch7x7dbl_4", width, along),
            Conv("branch7x7dbl_5", 192, across),
        ],
    ]
    return Block(inputs, branches, _average(), 192)


def _d(inputs: int) -> Block:
    branches: list[Branch] = [
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ]
    return Block(inputs, branches, nn.MaxPool2d(3, 2), None)


def _e(inputs: int, pool: nn.Module) -> Block:
    def pair(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    branches: list[Branch] = [
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), pair("branch3x3_2")],
        [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), pair("branch3x3dbl_3")],
    ]
    return Block(inputs, branches, pool, 192)
