"""Cards' models at full size without their weights: sizes, memory figures, and whether defenses find their place.

``harness doctor --random-weights`` prints what is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cards.backbone import BackboneCard
from harness.cards.judge import JudgeCard
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.defenses import formats
from harness.errors import UserError
from harness.models import architectures


def checked_cards() -> list[str]:
    """Every card that there are facts of."""
    return [card for architecture in architectures.known() for card in architecture.cards]


def check(name: str, roots: Sequence[Path]) -> dict[str, Any]:
    """One card's model on the meta device.

    Args:
        name: of a backbone, a captioner, or a profile for its CLIP.
        roots: folders that hold cards.

    Returns:
        Its parts with millions of parameters and tensors, GB of weights as the card holds them, the card's memory
        figure, and ``faults``, a line each.

    Raises:
        UserError: no such card, or no facts of it.
    """
    architecture = architectures.of_card(name)
    dtype, memory_gb = _held(name, roots)
    built = {part.name: architectures.build(part) for part in architecture.parts}
    counts = {part: architectures.parameters(model) for part, model in built.items()}
    weights_gb = architectures.gigabytes(sum(counts.values()), dtype)
    faults = [f for part in architecture.parts if (f := architectures.fault(part, counts[part.name])) is not None]
    if memory_gb < weights_gb:
        faults.append(f"memory_gb is {memory_gb:g}, and the weights alone take {weights_gb:.1f} in {dtype}")
    faults += _unfit(built)
    return {
        "card": name,
        "architecture": architecture.name,
        "parts": {
            part: {"million_parameters": round(counts[part] / 1e6, 1), "tensors": len(model.state_dict())}
            for part, model in built.items()
        },
        "dtype": dtype,
        "weights_gb": round(weights_gb, 2),
        "memory_gb": memory_gb,
        "faults": faults,
    }


def _held(name: str, roots: Sequence[Path]) -> tuple[str, float]:
    """The dtype of a card's weights, and its memory figure in GB."""
    if name in card_names(ProfileCard, roots):
        clip = load_card(ProfileCard, name, roots).clip
        if clip is None:
            raise UserError(f"profile {name!r} names no CLIP")
        return clip.dtype, clip.memory_gb
    kind: type[BackboneCard | JudgeCard] = BackboneCard if name in card_names(BackboneCard, roots) else JudgeCard
    card = load_card(kind, name, roots)
    return card.dtype, card.memory_gb


def _unfit(built: dict[str, Any]) -> list[str]:
    """Where the text encoder and the UNet disagree, or a defense would not find what it changes."""
    unet, text = built.get("unet"), built.get("text_encoder")
    if unet is None or text is None:
        return []
    faults = []
    widths = [model.config.hidden_size for part, model in built.items() if part.startswith("text_encoder")]
    if sum(widths) != unet.config.cross_attention_dim:
        faults.append(f"text of width {sum(widths)}, and the UNet reads {unet.config.cross_attention_dim}")
    keys = set(unet.state_dict())
    if "text_encoder_2" in built:  # defenses that change a UNet's weights take Stable Diffusion 1 and 2
        return faults
    compvis = set(formats.compvis_names(unet).values())
    if len(compvis) != len(keys):
        faults.append(f"{len(keys)} tensors of the UNet, and {len(compvis)} names in CompVis's checkpoints")
    projections = [key for key in keys if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    shapes = {tuple(unet.state_dict()[key].shape)[1] for key in projections}
    if len(projections) != 2 * 16 or shapes != {unet.config.cross_attention_dim}:
        faults.append(f"{len(projections)} projections of text in cross-attention, and closed forms edit 32")
    return faults
