"""SafeRedir's network: from partly denoised latents, their prompt and the timestep to where the prompt should go.

Liu et al., "SafeRedir" (2026), Figures 7 and 8. Parameters bear the names of the authors' released checkpoint, so that
its state dict loads as it is; sizes follow the backbone, and are the released ones on Stable Diffusion 1.

Shapes: n images, window tokens, width of the text; c channels, h x w of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

_TIME, _TIME_WIDTH = 320, 64  # of the timestep: sinusoids, and what is made of them
_LATENT_WIDTH = 512
_QUERIES = 4
_RANK = 16
_HIDDEN = 256
_DROPOUT = 0.2


class Sizes(NamedTuple):
    """The sizes of the network that depend on the backbone."""

    latent_channels: int
    window: int
    width: int
    blocks: tuple[int, int, int] = (64, 128, 256)  # channels of the latent encoder's blocks


class Redirection(NamedTuple):
    """The network's output, for each image."""

    logits: Tensor  # (n, 2): safe, unsafe
    shift: Tensor  # (n, window, width): towards the safe prompt, of no particular length
    mask: Tensor  # (n, window), in [0, 1]: whether a token differs from the safe prompt's
    scale: Tensor  # (n, window), in [0, 1]: length of the shift, in units of the token's own


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.downsample = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return relu(self.conv(features) + self.downsample(features))


class _Query(nn.Module):
    """What one question about latents and time reads from the prompt."""

    def __init__(self, joint: int, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(joint, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, joint: Tensor, states: Tensor) -> Tensor:
        values = self.value(states)
        weight = torch.einsum("nd,ntd->nt", self.query(joint), self.key(states)) / math.sqrt(states.shape[-1])
        answer: Tensor = self.norm(torch.einsum("nt,ntd->nd", weight.softmax(-1), values) + values.mean(1))
        return answer


class _Queries(nn.Module):
    def __init__(self, joint: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Query(joint, width) for _ in range(_QUERIES))
        self.fuse = nn.Sequential(nn.Linear(_QUERIES * width, width), nn.LayerNorm(width))

    def forward(self, joint: Tensor, states: Tensor) -> Tensor:
        fused: Tensor = self.fuse(torch.cat([head(joint, states) for head in self.heads], -1))
        return fused


class _LowRank(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, _RANK, bias=False), nn.Linear(_RANK, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, vector: Tensor) -> Tensor:
        mapped: Tensor = self.up(self.down(vector)) * self.scale
        return mapped


class _Mask(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.predictor = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.LayerNorm(128), nn.Linear(128, 1))

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.predictor(self.attn(states, states, states, need_weights=False)[0]).squeeze(-1)
        return logits.sigmoid()


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 1), nn.Sigmoid())

    def forward(self, states: Tensor) -> Tensor:
        scale: Tensor = self.net(states).squeeze(-1)
        return scale


class Redirector(nn.Module):
    """Latent-aware classifier, token-wise shift, and predictors of its mask and scale."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, joint = sizes.width, _LATENT_WIDTH + _TIME_WIDTH
        channels = (sizes.latent_channels, *sizes.blocks)
        self.latent_encoder = nn.Sequential(
            *(_Block(before, after) for before, after in pairwise(channels)),
            nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
            nn.Linear(channels[-1], _LATENT_WIDTH), nn.ReLU(), nn.Dropout(_DROPOUT),
        )  # fmt: skip
        self.t_encoder = nn.Sequential(nn.Linear(_TIME, _TIME_WIDTH), nn.SiLU(), nn.LayerNorm(_TIME_WIDTH))
        self.cross_attn = _Queries(joint, width)
        self.pos_embed = nn.Parameter(torch.randn(1, sizes.window, width))
        self.classifier = nn.Sequential(
            nn.Linear(joint + 2 * width, _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, 2)
        )
        self.token_proj = nn.Sequential(nn.Linear(joint + width, 512), nn.ReLU(), nn.Linear(512, width))
        self.delta_head = _LowRank(width)
        self.gate_linear = nn.Linear(width, 1)
        self.mask_predictor = _Mask(width)
        self.alpha_predictor = _Scale(width)

    def forward(self, latents: Tensor, states: Tensor, timesteps: Tensor) -> Redirection:
        """Classify images and predict how their prompts should move.

        Args:
            latents: (n, c, h, w), at unit noise scale, as the denoiser takes them.
            states: (n, window, width), the prompts as the denoiser reads them.
            timesteps: (n,).
        """
        joint = torch.cat([self.latent_encoder(latents), self.t_encoder(_sinusoids(timesteps))], -1)
        read = self.cross_attn(joint, states)
        logits = self.classifier(torch.cat([joint, states.mean(1), read], -1))
        direction = self.delta_head(self.token_proj(torch.cat([joint, read], -1)))  # (n, width): one for all tokens
        gate = self.gate_linear(states + self.pos_embed).sigmoid()
        mask = self.mask_predictor(states)
        return Redirection(logits, direction[:, None] * gate * mask[..., None], mask, self.alpha_predictor(states))


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes | None:
    """The sizes of a redirector's tensors; None where they are not a redirector's."""
    try:
        first, *others = (tensors[f"latent_encoder.{i}.conv.0.weight"].shape for i in range(3))
        _, window, width = tensors["pos_embed"].shape
    except (KeyError, ValueError):
        return None
    return Sizes(first[1], window, width, (first[0], others[0][0], others[1][0]))


def restored(tensors: Mapping[str, Tensor], sizes: Sizes) -> Redirector:
    """A redirector, in eval mode, with ``tensors`` for its parameters and running statistics."""
    made = Redirector(sizes)
    made.load_state_dict(dict(tensors) | {name: made.state_dict()[name] for name in counters(made)})
    return made.eval()


def counters(redirector: Redirector) -> list[str]:
    """Names of batch normalisation's ``num_batches_tracked`` buffers, which nothing needs after training."""
    return [name for name in redirector.state_dict() if name.endswith("num_batches_tracked")]


def _sinusoids(timesteps: Tensor) -> Tensor:
    """(n, 320): sines, then cosines, of the timestep at falling frequencies."""
    half = _TIME // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
