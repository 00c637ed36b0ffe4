"""SLD, Safe Latent Diffusion: guidance away from a safety concept at every denoising step.

Schramowski et al., "Safe Latent Diffusion" (CVPR 2023), Eq. 3 to 8. With u, c and s the denoiser's
predictions for the empty text, the prompt and the safety concept:

    mu    = min(1, scale |c - s|) where c - s < threshold, else 0
    gamma = mu (s - u) + momentum_scale nu
    nu    = beta nu + (1 - beta) gamma              (0 at first; grows during the warm-up too)
    noise = u + guidance (c - u - gamma)            (without gamma during the warm-up)

The denoiser is wrapped, since a pipeline's callbacks come after the scheduler's step: it predicts s
beside u and c in one batch and hands back [u; c - gamma], which the pipeline's own guidance turns into
the formula above. On a backbone that predicts velocity the formulas act on velocities as they are.

The concept's phrases are steered away from, never drawn from, so they are data and not put to the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from harness.defenses.base import Defense, Params, Pipe, encode, parse
from harness.errors import RowError

if TYPE_CHECKING:
    from torch import Tensor


class SldParams(Params):
    """What a card may say; the bounds keep the guidance one that leads away from the concept."""

    phrases: tuple[str, ...] = Field(min_length=1)  # joined by ", "
    warmup: int = Field(ge=0)  # denoiser calls without correction; a PNDM run of 50 steps makes 51
    scale: float = Field(gt=1)
    threshold: float
    momentum_scale: float = Field(ge=0, le=1)
    momentum_beta: float = Field(ge=0, lt=1)


PARAMS = SldParams


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


class Sld(Defense):
    """Wraps the denoiser's ``forward``; its state lives for one micro-batch."""

    def __init__(self, settings: SldParams) -> None:
        self._settings = settings
        self._concept: Tensor | None = None  # (1, window, width)
        self._forward: Callable[..., Any] | None = None
        self._own: Any = None  # a `forward` that the denoiser already carried as its own
        self._count = 0
        self._calls = 0
        self._momentum: Tensor | None = None

    def attach(self, pipe: Pipe) -> None:
        """Embed the concept and wrap the denoiser.

        Raises:
            UserError: the phrases do not fit the text encoder's window.
        """
        if self._forward is not None:
            raise RuntimeError("this defense is attached already")
        self._concept = encode(pipe, ", ".join(self._settings.phrases)).states[None]
        self._own = vars(pipe.unet).get("forward")
        self._forward = pipe.unet.forward
        pipe.unet.forward = self._guided

    def detach(self, pipe: Pipe) -> None:
        if self._forward is None:
            return
        del pipe.unet.forward
        if self._own is not None:
            pipe.unet.forward = self._own
        self._forward = self._own = self._concept = self._momentum = None

    def begin(self, count: int) -> dict[str, Any]:
        self._count, self._calls, self._momentum = count, 0, None
        return {}

    def _guided(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The denoiser's ``forward`` for the batch [u; c] of guidance, corrected.

        Raises:
            RowError: there is no guidance to correct (scale 1 or less).
        """
        import torch

        if self._forward is None or self._concept is None:
            raise RuntimeError("this defense is not attached")
        count = self._count
        if sample.shape[0] == count:
            raise RowError("sld:no-guidance", "SLD corrects classifier-free guidance, which needs a scale above 1")
        if sample.shape[0] != 2 * count:
            raise RuntimeError(f"the denoiser got {sample.shape[0]} latents, begin({count}) announced {2 * count}")
        concept = self._concept.to(encoder_hidden_states).expand(count, -1, -1)
        predicted = self._forward(
            _with_third(sample, count),
            _with_third(timestep, count),
            torch.cat([encoder_hidden_states, concept]),
            *(_with_third(a, count) for a in args),
            return_dict=False,
            **{name: _with_third(value, count) for name, value in kwargs.items()},
        )[0]
        corrected = self._correct(Predictions(*predicted.chunk(3)))
        if not return_dict:
            return (corrected,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=corrected)

    def _correct(self, predicted: Predictions) -> Tensor:
        import torch

        momentum = torch.zeros_like(predicted.prompt) if self._momentum is None else self._momentum
        gamma, self._momentum = correction(predicted, momentum, self._settings)
        warming = self._calls < self._settings.warmup
        self._calls += 1
        return torch.cat([predicted.empty, predicted.prompt if warming else predicted.prompt - gamma])


def _with_third(value: Any, count: int) -> Any:
    """A batched tensor [u; c] with c's half once more; anything else as it is."""
    import torch

    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 2 * count:
        return torch.cat([value, value[count:]])
    return value


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """SLD with the card's configuration.

    Raises:
        UserError: a bad parameter.
    """
    return Sld(parse(SldParams, params))
