"""What defenses that act while an image is drawn share: a wrapper round the denoiser's ``forward``.

A pipeline's own callbacks come after the scheduler's step; what needs another prediction, or other text, before it
wraps the denoiser (the UNet, or the transformer of Stable Diffusion 3). The scheduler scales what the denoiser is
given, so that a wrapper sees the same latents under any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.defenses.base import Defense, Pipe

if TYPE_CHECKING:
    from torch import Tensor

STATES = "encoder_hidden_states"  # the denoiser's argument that holds the text, (rows, window, width)
_LATENTS = ("sample", "hidden_states")  # a UNet's and a transformer's name for the latents


def denoiser(pipe: Pipe) -> Any:
    """The network that a pipeline calls once a step."""
    unet = getattr(pipe, "unet", None)
    return pipe.transformer if unet is None else unet


class DenoiserDefense(Defense):
    """Wraps the denoiser's ``forward`` while attached. A subclass says in ``predict`` what is predicted instead."""

    def __init__(self) -> None:
        self.prompts: tuple[str, ...] = ()  # of the micro-batch that is being drawn
        self._forward: Callable[..., Any] | None = None
        self._own: Any = None  # a `forward` that the denoiser already carried as its own
        self._signature = inspect.Signature()
        self._transformer = False

    def predict(self, inputs: dict[str, Any], guided: bool) -> Tensor:
        """What the pipeline gets in place of the denoiser's prediction.

        Args:
            inputs: arguments of the denoiser's call by name, without ``return_dict``. Batched ones have a row for each
                image, or with guidance twice as many: first those of the empty (or negative) text.
            guided: whether there is classifier-free guidance.
        """
        raise NotImplementedError

    def attach(self, pipe: Pipe) -> None:
        if self._forward is not None:
            raise RuntimeError("this defense is attached already")
        network = denoiser(pipe)
        self._transformer = "sample" not in inspect.signature(type(network).forward).parameters
        self._signature = inspect.signature(type(network).forward)
        self._own = vars(network).get("forward")
        self._forward = network.forward
        network.forward = self._called

    def detach(self, pipe: Pipe) -> None:
        if self._forward is None:
            return
        network = denoiser(pipe)
        del network.forward
        if self._own is not None:
            network.forward = self._own
        self._forward = self._own = None

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self.prompts = tuple(prompts)
        return {}

    def undefended(self, inputs: Mapping[str, Any]) -> Tensor:
        """The prediction of the denoiser as it was before ``attach``."""
        if self._forward is None:
            raise RuntimeError("this defense is not attached")
        prediction: Tensor = self._forward(**inputs, return_dict=False)[0]
        return prediction

    def latents(self, inputs: Mapping[str, Any]) -> Tensor:
        """The latents of a call, (rows, channels, height, width), as scaled by the scheduler."""
        latents: Tensor = inputs[_LATENTS[self._transformer]]
        return latents

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(None, *args, **kwargs).arguments
        inputs = dict(list(bound.items())[1:])  # without `self`
        inputs |= inputs.pop("kwargs", {})
        as_object = inputs.pop("return_dict", True)
        rows, count = len(self.latents(inputs)), len(self.prompts)
        if rows not in (count, 2 * count):
            raise RuntimeError(f"the denoiser got {rows} latents, `begin` announced {count} prompts")
        prediction = self.predict(inputs, guided=rows == 2 * count)
        if not as_object:
            return (prediction,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return (Transformer2DModelOutput if self._transformer else UNet2DConditionOutput)(sample=prediction)


def repeated(value: Any, rows: int, count: int) -> Any:
    """A batched argument with its last ``count`` rows once more at its end; anything else as it is.

    Args:
        value: a tensor of ``rows`` rows, a mapping of such tensors, or another argument.
        rows: of the batch.
        count: images, so that the rows that come again are those of the prompts.
    """
    import torch

    if isinstance(value, Mapping):
        return {name: repeated(item, rows, count) for name, item in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == rows:
        return torch.cat([value, value[-count:]])
    return value
