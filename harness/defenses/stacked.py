"""Several defenses at once: the first is attached to the backbone, each further one to the result.

SafeRedir's paper evaluates it so, on top of unlearned models. Each layer is built by itself, for the undefended
backbone; only at sampling time are they combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness import defenses
from harness.defenses.base import Defense, Pipe
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.cards.backbone import BackboneCard
    from harness.cards.defense import DefenseStack

_REPLACES_WEIGHTS = ("unet-delta", "pipeline")  # artefacts that put tensors in the place of the backbone's own
_DENOISES_BESIDE = ("sld", "safree")  # mechanisms that call the denoiser with more rows than they are given


class Stacked(Defense):
    """Defenses attached one after the other, and detached from the last to the first."""

    def __init__(self, layers: Sequence[Defense]) -> None:
        self._layers = tuple(layers)
        self._attached: list[Defense] = []

    def attach(self, pipe: Pipe) -> None:
        """Attach every layer; where one refuses, those before it are detached again."""
        if self._attached:
            raise RuntimeError("this defense is attached already")
        try:
            for layer in self._layers:
                layer.attach(pipe)
                self._attached.append(layer)
        except BaseException:
            self.detach(pipe)
            raise

    def detach(self, pipe: Pipe) -> None:
        while self._attached:
            self._attached.pop().detach(pipe)

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Each layer's further arguments for the pipeline's call.

        Raises:
            UserError: two layers want the same argument.
        """
        merged: dict[str, Any] = {}
        for layer in self._layers:
            more = layer.begin(prompts)
            for name in sorted(more.keys() & merged.keys()):
                raise UserError(f"two defenses on top of each other both set the pipeline's {name}: leave one out")
            merged |= more
        return merged

    def note(self, guidance: float) -> str | None:
        """The notes of all layers on an image, comma separated; None where there are none."""
        said = [note for layer in self._layers if (note := layer.note(guidance)) is not None]
        return ",".join(said) or None


def stacked(layers: Sequence[Defense]) -> Defense:
    """One defense that attaches ``layers`` in order; a single layer is returned as it is."""
    return layers[0] if len(layers) == 1 else Stacked(layers)


def works(stack: DefenseStack, backbone: BackboneCard) -> bool:
    """Whether every layer can be attached to ``backbone``. Nothing is imported or loaded."""
    return all(defenses.works(card, backbone) for card in stack.layers)


def require(stack: DefenseStack, backbone: BackboneCard) -> None:
    """Refuse layers that cannot be attached to ``backbone``, or that cannot be combined.

    Raises:
        UserError: which layer, and why.
    """
    for card in stack.layers:
        defenses.require(card, backbone)
    replacing = [c.name for c in stack.layers if defenses.artefact_kind(c.mechanism) in _REPLACES_WEIGHTS]
    if len(replacing) > 1:
        raise UserError(
            f"--defense {stack.name!r}: {' and '.join(replacing)} each put weights of their own in the place of the "
            "backbone's, so that the later would undo the earlier: take one of them"
        )
    widening = [c.name for c in stack.layers if c.mechanism in _DENOISES_BESIDE]
    below = [c.name for c in stack.layers[:-1] if c.mechanism == "saferedir"]
    if below:
        raise UserError(f"--defense {stack.name!r}: {below[0]!r} goes on top of other defenses: name it last")
    if len(widening) > 1:
        raise UserError(
            f"--defense {stack.name!r}: {' and '.join(widening)} each denoise further rows beside the prompts', which "
            "the other would take for images: take one of them"
        )
    for card in stack.layers if len(stack.layers) > 1 else ():
        if card.mechanism == "none":
            raise UserError(f"--defense {stack.name!r}: 'none' is no defense to be on top of another: leave it out")
