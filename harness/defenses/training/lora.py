"""Low-rank changes of a denoiser's linear maps, by peft."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_NAME = "default"  # peft's own for an unnamed adapter


def add_lora(network: nn.Module, targets: str, rank: int, alpha: float, seed: int) -> dict[str, nn.Parameter]:
    """Add trainable low-rank changes to a student, in place; at first they change nothing.

    Args:
        network: as `loop.student_of` gives it; its own parameters stay frozen.
        targets: regular expression that a changed linear map's whole module name matches.
        rank: of each change.
        alpha: the change counts ``alpha / rank`` times.
        seed: of the first factors' random start; the second ones start at zero.

    Returns:
        the factors by name.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, bias="none")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, _NAME)
    return {name: value for name, value in network.named_parameters() if re.search(r"\.lora_[AB]\.", name)}


def lora_changes(network: nn.Module) -> dict[str, Tensor]:
    """What the factors add to each weight: UNet key (``...to_k.weight``) to float32 (rows, width), detached."""
    changes: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            changes[f"{name}.weight"] = layer.get_delta_weight(_NAME).detach().float()
    return changes
