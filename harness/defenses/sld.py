"""SLD, Safe Latent Diffusion: guidance away from a safety concept at every denoising step.

Schramowski et al., "Safe Latent Diffusion" (CVPR 2023), Eq. 3 to 8. With u, c and s the denoiser's
predictions for the empty text, the prompt and the safety concept:

    mu    = min(1, scale |c - s|) where c - s < threshold, else 0
    gamma = mu (s - u) + momentum_scale nu
    nu    = beta nu + (1 - beta) gamma              (0 at first; grows during the warm-up too)
    noise = u + guidance (c - u - gamma)            (without gamma during the warm-up)

The denoiser is wrapped, since a pipeline's callbacks come after the scheduler's step: it predicts s
beside u and c in one batch and hands back [u; c - gamma], which the pipeline's own guidance turns into
the formula above. On a backbone that predicts velocity the formulas act on velocities as they are. Without guidance
(scale 1 or less) there is nothing to correct: the image is drawn undefended, as the authors' code does, and its row
says so.

The concept's phrases are steered away from, never drawn from, so they are data and not put to the guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from harness.defenses.base import Defense, Params, Pipe, encode, no_guidance, parse
from harness.defenses.denoiser import STATES, DenoiserDefense, repeated

if TYPE_CHECKING:
    from torch import Tensor


class SldParams(Params):
    """Parameters that a card of SLD may set; their bounds keep guidance pointing away from the concept."""

    phrases: tuple[str, ...] = Field(min_length=1)  # joined by ", "
    warmup: int = Field(ge=0)  # denoiser calls without correction; a PNDM run of 50 steps makes 51
    scale: float = Field(gt=1)
    threshold: float
    momentum_scale: float = Field(ge=0, le=1)
    momentum_beta: float = Field(ge=0, lt=1)


PARAMS = SldParams
ZERO = {"warmup": 1_000_000}


class Predictions(NamedTuple):
    """What the denoiser predicts for one batch of latents under three texts; equal shapes."""

    empty: Tensor
    prompt: Tensor
    concept: Tensor


def correction(predicted: Predictions, momentum: Tensor, settings: SldParams) -> tuple[Tensor, Tensor]:
    """The correction gamma and the next momentum nu, of the predictions' shape."""
    gap = predicted.prompt - predicted.concept
    strength = (settings.scale * gap.abs()).clamp(max=1).masked_fill(gap >= settings.threshold, 0)
    gamma = strength * (predicted.concept - predicted.empty) + settings.momentum_scale * momentum
    return gamma, settings.momentum_beta * momentum + (1 - settings.momentum_beta) * gamma


class Sld(DenoiserDefense):
    """Corrects guidance at every call of the denoiser; its state lives for one micro-batch."""

    def __init__(self, settings: SldParams) -> None:
        super().__init__()
        self._settings = settings
        self._concept: Tensor | None = None  # (1, window, width)
        self._calls = 0
        self._momentum: Tensor | None = None

    def attach(self, pipe: Pipe) -> None:
        """Embed the concept and wrap the denoiser.

        Raises:
            UserError: the phrases do not fit the text encoder's window.
        """
        concept = encode(pipe, ", ".join(self._settings.phrases)).states[None]
        super().attach(pipe)
        self._concept = concept

    def detach(self, pipe: Pipe) -> None:
        super().detach(pipe)
        self._concept = self._momentum = None

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self._calls, self._momentum = 0, None
        return super().begin(prompts)

    def note(self, guidance: float) -> str | None:
        return no_guidance("sld", guidance)

    def predict(self, inputs: dict[str, Any], guided: bool) -> Tensor:
        """[u; c] of guidance, corrected; without guidance there is nothing to correct."""
        import torch

        if not guided or self._concept is None:
            return self.undefended(inputs)
        states, count = inputs[STATES], len(self.prompts)
        three = repeated(inputs, 2 * count, count)
        three[STATES] = torch.cat([states, self._concept.to(states).expand(count, -1, -1)])
        return self._correct(Predictions(*self.undefended(three).chunk(3)))

    def _correct(self, predicted: Predictions) -> Tensor:
        import torch

        momentum = torch.zeros_like(predicted.prompt) if self._momentum is None else self._momentum
        gamma, self._momentum = correction(predicted, momentum, self._settings)
        warming = self._calls < self._settings.warmup
        self._calls += 1
        return torch.cat([predicted.empty, predicted.prompt if warming else predicted.prompt - gamma])


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """SLD with the card's configuration.

    Raises:
        UserError: a bad parameter.
    """
    return Sld(parse(SldParams, params))
