"""RECE: find embeddings that still draw what UCE erased, erase them too, and again.

Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models" (ECCV 2024), with
the regulariser of its released code (towards zero). Each epoch derives, for every concept, the embeddings
that make the edited attention answer as the original did, and gives these keys the target's values.
The authors keep the epoch that does best on a validation set; here all epochs of the card are applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from harness.defenses.base import (
    BuildContext,
    BuiltParams,
    Defense,
    Pipe,
    UnetDelta,
    checked,
    encode,
    parse,
    projections,
)
from harness.defenses.closed_form import Scales, recover
from harness.defenses.uce import Text, UceParams, edited, kept_gram, replace, texts
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class ReceParams(BuiltParams):
    """Parameters that a card of RECE may set."""

    erase: tuple[Text, ...] = Field(min_length=1)
    target: str = " "  # what the erased texts turn into
    preserve: tuple[str, ...] | str | None = None  # texts, or a file with one a line (used by the start too); null: " "
    technique: Literal["replace", "tensor"] = "replace"
    epochs: int = Field(3, ge=0)
    reg: float = Field(0.1, gt=0)  # pull of the derived embeddings towards zero
    lam: float = Field(0.1, gt=0)
    erase_scale: float = Field(1.0, ge=0)
    preserve_scale: float = Field(0.1, ge=0)
    start: dict[str, Any] = Field(default_factory=dict)  # UCE's parameters for the model to start from

    @model_validator(mode="after")
    def _startable(self) -> ReceParams:
        _start(self)
        return self


PARAMS = ReceParams
ZERO = {"epochs": 0, "start": {"erase_scale": 0.0}}
ARTEFACT = "unet-delta"


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The ``attn2`` key and value matrices after UCE and all epochs.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold.
    """
    settings = parse(ReceParams, params)
    originals = projections(pipe.unet)
    weights = edited(pipe, originals, _start(settings))
    wholes = [_whole(pipe, text, settings.concept) for text in settings.erase]
    target = _whole(pipe, settings.target, settings.concept)
    default = (" ",) if not isinstance(settings.preserve, str) else ("",)
    kept = texts(settings.preserve, settings.erase, default)
    preserved = kept_gram(pipe, kept, settings.concept, whole=True)
    scales = Scales(settings.lam, settings.erase_scale, settings.preserve_scale)
    for _ in range(settings.epochs):
        pairs = [(derive(weights, originals, whole, settings.reg), target) for whole in wholes]
        weights = replace(weights, pairs, preserved, scales, settings.technique)
    return {key: w.float() for key, w in weights.items()}


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the edited weights into the UNet."""
    parse(ReceParams, params)
    if artefact is None:
        raise ValueError("rece needs its artefact")
    return UnetDelta(artefact)


def derive(weights: Mapping[str, Tensor], originals: Mapping[str, Tensor], concept: Tensor, reg: float) -> Tensor:
    """The embeddings (window, width) that all of ``weights`` take for what ``originals`` took ``concept`` for."""
    import torch

    keys = list(originals)
    return recover(torch.cat([weights[k] for k in keys]), torch.cat([originals[k] for k in keys]), concept, reg)


def _start(settings: ReceParams) -> UceParams:
    """UCE's parameters: those of the card's ``start``, over what it shares with RECE.

    Raises:
        UserError: a bad parameter, or one that is the run's own (``concept``) or would not be used (``weights``).
    """
    for key in ("concept", "weights"):
        if key in settings.start:
            raise UserError(f"defense rece: start: it takes no {key!r} (UCE is built here, for the run's concept)")
    inherited = {"erase": settings.erase, "target": settings.target, "concept": settings.concept}
    if isinstance(settings.preserve, str):
        inherited["preserve"] = settings.preserve
    return parse(UceParams, {**inherited, **settings.start})


def _whole(pipe: Pipe, text: str, concept: str) -> Tensor:
    """The embeddings of the whole window, (window, width) float64 on the CPU."""
    return encode(pipe, checked(text, concept)).states.cpu().double()
