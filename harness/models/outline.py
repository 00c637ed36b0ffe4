"""A backbone without its weights: what published weights of a defense are checked against before any model loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cards.backbone import BackboneCard
from harness.models import weights


@dataclass(frozen=True)
class Window:
    """What of a tokenizer the shape of a defense's weights depends on."""

    model_max_length: int


@dataclass(frozen=True)
class Outline:
    """A backbone's denoiser on the meta device, which has names, shapes and settings and no values, and its window."""

    unet: Any  # a diffusers UNet2DConditionModel
    tokenizer: Window


def outline(card: BackboneCard) -> Outline | None:
    """The outline of a backbone; None where its configuration is not on this machine, or it has no UNet."""
    here = {f"{path.parent.name}/{path.name}": path for path in weights.files(card.weights()[0])}
    network, words = here.get("unet/config.json"), here.get("tokenizer/tokenizer_config.json")
    if network is None or words is None:
        return None
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_read(network))
    return Outline(unet, Window(int(_read(words)["model_max_length"])))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
