"""SalUn: the weights that a concept hangs on most learn to answer it as they answer a harmless text.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (ICLR 2024), as its released code
forgets a concept. Two sets of images are drawn by the backbone: from texts to forget, and from texts to keep in their
place. With e the denoiser that is trained, g(x, c) = (1 + w) e(x, c) - w e(x, 0) its guided prediction:

- saliency: signed gradients of -|noise - g(x_t, forget)|^2 are summed over the images to forget; the weights with the
  largest sums, in absolute value over the whole denoiser, are the only ones that are trained;
- training: |e(x_t, forget) - sg[e(x_t, keep)]|^2 over images to forget, plus alpha |e(y_t, keep) - noise|^2 over images
  to keep.

A build draws the images to forget: on a real backbone, what its card's texts say. Published weights spare that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from harness.defenses.base import BuildContext, BuildEstimate, BuildStep, BuiltParams, Defense, Pipe, UnetDelta, parse

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.utils.hooks import RemovableHandle

Text = Annotated[str, Field(pattern=r"\S")]


class SalunParams(BuiltParams):
    """Parameters that a card of SalUn may set."""

    forget: tuple[Text, ...] = Field(min_length=1)
    keep: tuple[Text, ...] = Field(min_length=1)  # one for each text to forget: what takes its place
    images: int = Field(800, gt=0)  # of each set
    share: float = Field(0.5, ge=0, le=1)  # of the weights that are trained
    saliency_guidance: float = Field(7.5, ge=0)  # w
    alpha: float = Field(0.1, ge=0)
    steps: int = Field(100, ge=0)
    batch: int = Field(8, gt=0)
    lr: float = Field(1e-5, gt=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _paired(self) -> SalunParams:
        if len(self.forget) != len(self.keep):
            raise ValueError(f"{len(self.forget)} texts to forget need as many to keep, not {len(self.keep)}")
        return self


PARAMS = SalunParams
QUICK = {"steps": 3, "images": 4, "batch": 4}
ZERO = {"steps": 0}
ARTEFACT = "unet-delta"


class Sets:
    """Latents of both sets of images and the texts they are of; image ``i`` is of text ``i`` modulo their number."""

    def __init__(self, pipe: Pipe, settings: SalunParams, context: BuildContext) -> None:
        from harness.defenses.training import data, losses

        self.texts = len(settings.forget)
        first = 2 * settings.seed * settings.images
        latents, states = [], []
        for i, (name, texts) in enumerate((("forget", settings.forget), ("keep", settings.keep))):
            cycled = [texts[j % len(texts)] for j in range(settings.images)]
            seeds = range(first + i * settings.images, first + (i + 1) * settings.images)
            latents.append(data.latents(pipe, context, name, cycled, seeds, settings.concept))
            states.append(losses.text_states(pipe, texts, settings.concept))
        self.forget, self.keep = latents
        self.forget_states, self.keep_states = states


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The UNet's tensors, of which a share of the weights is trained and the others are as before.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, nobody to draw the images,
            or a loss that diverges.
    """
    import torch

    from harness.defenses.training import loop

    settings = parse(SalunParams, params)
    sets = Sets(pipe, settings, context)
    student = loop.student_of(pipe.unet)
    parameters = loop.only_trainable(student, lambda name: True)
    masks = loop.cached(context, "saliency", lambda: saliency(pipe, student, parameters, settings, sets, context))
    hooks = [_only(value, masks[name]) for name, value in parameters.items()]
    plan = loop.Training(phase="train", steps=settings.steps, seed=settings.seed)
    try:
        loss = forgetting_loss(pipe, student, settings, sets)
        loop.train(plan, parameters, lambda values: torch.optim.Adam(values, lr=settings.lr), loss, context)
    finally:
        for hook in hooks:
            hook.remove()
    return loop.delta(parameters)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the trained weights into the UNet."""
    parse(SalunParams, params)
    if artefact is None:
        raise ValueError("salun needs its artefact")
    return UnetDelta(artefact)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted: two predictions and a backward pass per image to forget, then three and two per training step."""
    settings = parse(SalunParams, params)
    calls = settings.images * (2 + 4) + settings.steps * settings.batch * (3 + 4)
    return BuildEstimate(settings.steps, 2 * settings.images, calls)


def _only(parameter: nn.Parameter, mask: Tensor) -> RemovableHandle:
    """Let gradients through to ``parameter`` only where ``mask`` is true."""
    placed = mask.to(parameter.device)
    handle: RemovableHandle = parameter.register_hook(lambda gradient: gradient * placed)  # type: ignore[no-untyped-call]
    return handle


def saliency(
    pipe: Pipe,
    student: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    settings: SalunParams,
    sets: Sets,
    context: BuildContext,
) -> dict[str, Tensor]:
    """A mask of the weights to train: parameter name to a boolean tensor of its shape, on the CPU."""
    import torch
    from torch.nn.functional import mse_loss

    from harness.defenses.training import loop, losses

    process = losses.NoiseProcess(pipe)
    empty = losses.text_states(pipe, [""], settings.concept)
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with torch.inference_mode(False), torch.enable_grad():
        for batch in loop.batches(settings.images, settings.batch):
            generator = loop.step_generator(settings.seed, -1 - batch.start)  # none of the training's
            clean = sets.forget[list(batch)].to(process.device)
            noise = process.noise(clean.shape, generator)
            timesteps = process.random_timesteps(len(clean), generator)
            noised = process.noised(clean, noise, timesteps)
            states = sets.forget_states[[i % sets.texts for i in batch]]
            prediction = losses.guided(student, noised, timesteps, states, empty, 1 + settings.saliency_guidance)
            loss = -mse_loss(prediction, process.target(clean, noise, timesteps))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient
            context.report(BuildStep("saliency", batch.stop, settings.images, float(loss.detach())))
    return most_salient({name: total.abs().cpu() for name, total in sums.items()}, settings.share)


def most_salient(amounts: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The largest of all amounts together: name to a boolean tensor of its shape.

    By halving over the amounts' bits, in place of sorting them: a real denoiser has 860 million.

    Args:
        amounts: not negative, float32.
        share: of all amounts, rounded to a whole number of them; where several equal the last one, all of these are in.
    """
    import torch

    bits = {name: amount.contiguous().view(torch.int32) for name, amount in amounts.items()}  # in the amounts' order
    wanted = round(share * sum(amount.numel() for amount in amounts.values()))
    low, high = 0, 2**31 - 1  # the threshold is the largest that leaves as many as wanted
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((b >= middle).sum()) for b in bits.values()) >= wanted:
            low = middle
        else:
            high = middle - 1
    return {name: b >= low if wanted else torch.zeros_like(b, dtype=torch.bool) for name, b in bits.items()}


def forgetting_loss(
    pipe: Pipe, student: nn.Module, settings: SalunParams, sets: Sets
) -> Callable[[int, Generator], Tensor]:
    """The loss of one training step, as a function of its number and generator; each epoch shuffles the images anew."""
    import torch
    from torch.nn.functional import mse_loss

    from harness.defenses.training import losses

    process = losses.NoiseProcess(pipe)

    def chosen(step: int, salt: int) -> Tensor:
        places = range(step * settings.batch, (step + 1) * settings.batch)
        return torch.tensor([_shuffled(settings, place, salt) for place in places])

    def loss(step: int, generator: Generator) -> Tensor:
        forget, keep = chosen(step, 0), chosen(step, 1)
        noise = process.noise(sets.forget[forget].shape, generator)
        timesteps = process.random_timesteps(settings.batch, generator)
        noised = process.noised(sets.forget[forget], noise, timesteps)
        texts = forget % sets.texts
        with torch.no_grad():
            wanted = losses.predict(student, noised, timesteps, sets.keep_states[texts])
        total = mse_loss(losses.predict(student, noised, timesteps, sets.forget_states[texts]), wanted)
        noise = process.noise(sets.keep[keep].shape, generator)
        timesteps = process.random_timesteps(settings.batch, generator)
        noised = process.noised(sets.keep[keep], noise, timesteps)
        kept = losses.predict(student, noised, timesteps, sets.keep_states[keep % sets.texts])
        return total + settings.alpha * mse_loss(kept, process.target(sets.keep[keep], noise, timesteps))

    return loss


def _shuffled(settings: SalunParams, place: int, salt: int) -> int:
    """Which image stands at a place of an endless sequence of epochs, each shuffled by seed, number and salt."""
    import torch

    from harness.defenses.training import loop

    epoch, within = divmod(place, settings.images)
    order = torch.randperm(settings.images, generator=loop.step_generator(settings.seed, -(2 * epoch + salt + 1) << 32))
    return int(order[within])
