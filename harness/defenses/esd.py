"""ESD: the denoiser learns to predict, for the erased text, what leads away from it.

Gandikota et al., "Erasing Concepts from Diffusion Models" (ICCV 2023), Eq. 6. With e0 the frozen denoiser, e the one
that is trained, c the erased text and 0 the empty one,

    |e(x, c, t) - (e0(x, 0, t) - eta (e0(x, c, t) - e0(x, 0, t)))|^2

is minimised over partly denoised latents x; no images are needed. Two published trainers share the name:

- ``original``, the paper's: the student itself makes x, by DDIM; t is drawn from the whole stretch of noise levels
  between x's step and the next.
- ``current``, the rewritten code: the frozen denoiser makes x, by the pipeline's own sampler, and t is x's own. Its
  formula starts from e0(x, c, t) in place of e0(x, 0, t), so that its eta of 2 is the original's eta of 1. It trains in
  bfloat16 at 1024 x 1024 pixels whatever the backbone; here in float32 at the backbone's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.defenses.base import BuildContext, BuildEstimate, BuiltParams, Defense, Pipe, UnetDelta, parse
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Text = Annotated[str, Field(pattern=r"\S")]
Part = Literal["noxattn", "xattn", "selfattn", "full", "esd-u", "esd-x", "esd-x-strict"]


class EsdParams(BuiltParams):
    """Parameters that a card of ESD may set."""

    variant: Literal["original", "current"] = "original"
    erase: tuple[Text, ...] = Field(min_length=1)  # one of them is drawn at each step
    train: Part = "noxattn"  # noxattn and esd-u: ESD-u of the paper; xattn and esd-x: ESD-x
    steps: int = Field(1000, ge=0)
    lr: float = Field(1e-5, gt=0)
    eta: float = Field(1.0, ge=0)  # of the variant's own formula
    sampler_steps: int = Field(50, gt=1)
    guidance: float = 3.0  # while x is made
    batch: int = Field(1, gt=0)  # latents a step, all at one noise level; the paper's is 1
    seed: int = Field(0, ge=0)


PARAMS = EsdParams
QUICK = {"steps": 3}
ZERO = {"steps": 0}
ARTEFACT = "unet-delta"


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The trained part of the UNet.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, or a loss that diverges.
    """
    import torch

    from harness.defenses.training import loop

    settings = parse(EsdParams, params)
    student = loop.student_of(pipe.unet)
    parameters = loop.only_trainable(student, part(student, settings.train))
    plan = loop.Training(phase="train", steps=settings.steps, seed=settings.seed)
    with loop.frozen(pipe.unet):
        loss = erasing_loss(pipe, student, settings)
        loop.train(plan, parameters, lambda values: torch.optim.Adam(values, lr=settings.lr), loss, context)
    return loop.delta(parameters)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the trained weights into the UNet."""
    parse(EsdParams, params)
    if artefact is None:
        raise ValueError("esd needs its artefact")
    return UnetDelta(artefact)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted per latent of each step: half a guided sampling on average, three predictions and one backward pass."""
    settings = parse(EsdParams, params)
    calls = 2 * (settings.sampler_steps // 2) + 3 + 2
    return BuildEstimate(steps=settings.steps, denoiser_calls=settings.steps * settings.batch * calls)


def part(unet: Any, name: Part) -> Callable[[str], bool]:
    """A function that says of a parameter's name whether it belongs to a named part of ``unet``.

    The original trainer's parts leave modules out by name, the current one's take linear maps and convolutions only.
    """
    from torch import nn

    layers = {n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def is_complete(key: str) -> bool:
        return key.rpartition(".")[0] in layers

    tests: dict[str, Callable[[str], bool]] = {
        "full": lambda key: True,
        "xattn": lambda key: ".attn2." in key,
        "selfattn": lambda key: ".attn1." in key,
        "noxattn": lambda key: ".attn2." not in key and not key.startswith(("conv_norm_out", "conv_out", "time_embed")),
        "esd-x": lambda key: ".attn2." in key and is_complete(key),
        "esd-x-strict": lambda key: key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
        "esd-u": lambda key: ".attn2." not in key and is_complete(key),
    }
    return tests[name]


def negated(empty: Tensor, conditioned: Tensor, settings: EsdParams) -> Tensor:
    """The prediction that leads away from the erased text, by the variant's formula."""
    start = empty if settings.variant == "original" else conditioned
    return start - settings.eta * (conditioned - empty)


def erasing_loss(pipe: Pipe, student: nn.Module, settings: EsdParams) -> Callable[[int, Generator], Tensor]:
    """The loss of one training step, as a function of the step's number and its random generator."""
    import torch
    from diffusers import DDIMScheduler
    from torch.nn.functional import mse_loss

    from harness.defenses.training import losses

    process = losses.NoiseProcess(pipe)
    erased = losses.text_states(pipe, settings.erase, settings.concept)
    empty = losses.text_states(pipe, [""], settings.concept)
    original = settings.variant == "original"
    walker = losses.sampler(pipe, DDIMScheduler if original else type(pipe.scheduler), settings.sampler_steps)
    if len(walker.timesteps) < settings.sampler_steps:
        raise UserError(f"defense esd: this backbone's sampler makes no {settings.sampler_steps} steps")

    def loss(step: int, generator: Generator) -> Tensor:
        states = erased[torch.randint(len(erased), (1,), generator=generator)]
        stop = int(torch.randint(settings.sampler_steps, (1,), generator=generator))
        noise = process.noise((settings.batch, *losses.latent_shape(pipe)), generator)
        maker = student if original else pipe.unet
        partial = losses.partly_denoised(maker, walker, noise, stop, (states, empty), settings.guidance)
        timestep = (
            losses.level(process.timesteps, settings.sampler_steps, stop, generator) if original else partial.timestep
        )
        timesteps = torch.full((settings.batch,), timestep, device=process.device)
        with torch.no_grad():
            target = negated(
                losses.predict(pipe.unet, partial.latents, timesteps, empty),
                losses.predict(pipe.unet, partial.latents, timesteps, states),
                settings,
            )
        return mse_loss(losses.predict(student, partial.latents, timesteps, states), target)

    return loss
