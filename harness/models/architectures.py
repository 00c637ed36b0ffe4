"""The published models at their true size with random weights: what can be seen of them without a download.

``architectures.yaml`` beside this module holds their configurations. On torch's meta device a model takes no memory:
its keys, shapes and number of parameters are there, and nothing to compute with.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, nearest

_FACTS = Path(__file__).with_name("architectures.yaml")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of one parameter
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of a published model."""

    name: str  # as its pipeline calls it
    cls: str  # library and class
    config: Mapping[str, Any]
    parameters: float  # in millions


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The networks of a published model, and the cards whose weights have these shapes."""

    name: str
    cards: tuple[str, ...]
    parts: tuple[Part, ...]


@cache
def known() -> tuple[Architecture, ...]:
    """Every architecture that there are facts of."""
    facts = yaml.safe_load(_FACTS.read_text(encoding="utf-8"))
    return tuple(
        Architecture(
            name=name,
            cards=tuple(about["cards"]),
            parts=tuple(
                Part(name=part, cls=said["class"], config=said["config"], parameters=said["parameters"])
                for part, said in about["parts"].items()
            ),
        )
        for name, about in facts.items()
    )


def of_card(card: str) -> Architecture:
    """The architecture of a card's model.

    Args:
        card: name of a backbone, of a captioner, or of a profile for its CLIP.

    Raises:
        UserError: there are no facts of it.
    """
    by_card = {name: architecture for architecture in known() for name in architecture.cards}
    if card not in by_card:
        raise UserError(
            f"no architecture is known of {card!r}{nearest(card, by_card)} (there are those of: {', '.join(by_card)})"
        )
    return by_card[card]


def build(part: Part, device: str = "meta", **changed: Any) -> Any:
    """The network with random weights; on the meta device without any.

    Args:
        part: which.
        device: where its parameters lie.
        changed: other values of its configuration, such as fewer layers.
    """
    import torch

    library, _, name = part.cls.partition(".")
    cls = getattr(importlib.import_module(library), name)
    config = {**part.config, **changed}
    with torch.device(device):
        model = cls(**config) if library == "diffusers" else cls(cls.config_class(**config))
    return model.eval()


def parameters(model: Any) -> int:
    """How many numbers a network learns; shared ones count once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def gigabytes(count: int, dtype: str) -> float:
    """What so many parameters take, in GB (1e9 bytes)."""
    return count * BYTES[dtype] / 1e9


def fault(part: Part, count: int) -> str | None:
    """What is wrong with the number of a part's parameters; None within the last digit of what is known of it."""
    if abs(count / _MILLION - part.parameters) < 0.06:
        return None
    return f"{part.name}: {count / _MILLION:.1f} million parameters as installed, {part.parameters} as published"
