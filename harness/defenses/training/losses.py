"""What the losses of several defenses are made of: noise predictions, their training targets, partly denoised latents.

Latents are (batch, channels, height, width), text states (batch, window, width), timesteps (batch,) int64. Everything
returned is float32 on the denoiser's device. Predictions are what the denoiser was trained to predict, noise or
velocity: at one timestep these are affine in each other, so a loss whose target is an affine combination of predictions
(its weights sum to 1) asks for the same denoiser either way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor

from harness.defenses.base import Pipe, checked, encode
from harness.errors import UserError


def text_states(pipe: Pipe, texts: Sequence[str], concept: str) -> Tensor:
    """Each text as the denoiser sees it, (texts, window, width).

    Raises:
        UserError: the guard refuses a text, or it does not fit the text encoder's window.
    """
    return torch.stack([encode(pipe, checked(text, concept)).states for text in texts]).float()


def latent_shape(pipe: Pipe) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the denoiser was trained on."""
    config = pipe.unet.config
    size = config.sample_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(config.in_channels), int(height), int(width)


def predict(unet: Any, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """The denoiser's prediction, like ``latents``.

    Args:
        unet: a diffusers UNet2DConditionModel of any dtype.
        latents: one or more.
        timesteps: one for each of ``latents``.
        states: one for each, or one for all.
    """
    weight = next(unet.parameters())
    device, dtype = weight.device, weight.dtype
    conditioned = states.to(device, dtype).expand(len(latents), -1, -1)
    moved = latents.to(device, dtype)
    prediction: Tensor = unet(moved, timesteps.to(device), encoder_hidden_states=conditioned, return_dict=False)[0]
    return prediction.float()


def guided(unet: Any, latents: Tensor, timesteps: Tensor, states: Tensor, empty: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance from ``empty`` to ``states`` (Ho and Salimans, Eq. 6), by one call of the denoiser."""
    both = torch.cat([empty.expand(len(latents), -1, -1), states.expand(len(latents), -1, -1)])
    prediction = predict(unet, torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)
    without, conditioned = prediction.chunk(2)
    return without + scale * (conditioned - without)


class NoiseProcess:
    """How a pipeline's denoiser was trained to see noise: its scheduler's own betas and kind of prediction."""

    def __init__(self, pipe: Pipe) -> None:
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.timesteps = int(self.scheduler.config.num_train_timesteps)
        self.device = next(pipe.unet.parameters()).device

    def noise(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Standard normal noise, drawn on the CPU so that devices draw alike."""
        return torch.randn(tuple(shape), generator=generator).to(self.device)

    def random_timesteps(self, count: int, generator: Generator) -> Tensor:
        """Uniform timesteps, (count,)."""
        return torch.randint(self.timesteps, (count,), generator=generator).to(self.device)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``latents`` with ``noise`` added as at ``timesteps`` of the schedule, like ``latents``."""
        mixed: Tensor = self.scheduler.add_noise(latents.to(self.device), noise, timesteps)
        return mixed

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser was trained to predict for ``noised(latents, noise, timesteps)``."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: Tensor = self.scheduler.get_velocity(latents.to(self.device), noise, timesteps)
            return velocity
        raise UserError(f"this backbone's denoiser predicts {kind!r}; defenses are trained on noise or velocity")


class Partial(NamedTuple):
    """Latents part of the way through sampling."""

    latents: Tensor  # (1, channels, height, width), as the denoiser takes them
    stop: int  # steps that were made
    timestep: int  # at which the denoiser would be called next


def sampler(pipe: Pipe, kind: Any, steps: int) -> Any:
    """A scheduler of the class ``kind`` with the pipeline's noise levels, set to ``steps`` steps."""
    made = kind.from_config(pipe.scheduler.config)
    if "clip_sample" in made.config and "clip_sample" not in pipe.scheduler.config:
        made.register_to_config(clip_sample=False)  # a default for pixels, which cuts latents
    made.set_timesteps(steps)
    return made


def partly_denoised(
    unet: Any, scheduler: Any, noise: Tensor, stop: int, states: tuple[Tensor, Tensor], scale: float
) -> Partial:
    """Pure ``noise`` after ``stop`` steps of guided sampling; no gradients.

    Args:
        unet: the denoiser.
        scheduler: as ``sampler`` gives it; it is copied, since samplers remember.
        noise: (1, channels, height, width), standard normal.
        stop: from 0, which is pure noise, to one less than the scheduler's timesteps.
        states: of the text and of the empty text, (1, window, width) each.
        scale: of guidance.
    """
    walker = copy.deepcopy(scheduler)
    latents = noise * walker.init_noise_sigma
    with torch.no_grad():
        for timestep in walker.timesteps[:stop]:
            seen = walker.scale_model_input(latents, timestep)
            prediction = guided(unet, seen, timestep.expand(len(seen)), *states, scale)
            latents = walker.step(prediction, timestep, latents, return_dict=False)[0]
        following = walker.timesteps[stop]
        return Partial(walker.scale_model_input(latents, following), stop, int(following))


def level(timesteps: int, sampler_steps: int, stop: int, generator: Generator) -> int:
    """A random timestep from the stretch of noise levels that the sampler's step after ``stop`` steps stands for.

    Args:
        timesteps: that the denoiser was trained on.
        sampler_steps: of a whole sampling.
        stop: steps that were made.
        generator: to draw from.
    """
    remaining = sampler_steps - 1 - stop
    low, high = (round(k * timesteps / sampler_steps) for k in (remaining, remaining + 1))
    return int(torch.randint(low, high, (1,), generator=generator))
