"""MACE's second stage: for one concept, a low-rank change that withdraws attention from its words where it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from harness.defenses.base import BuildContext, BuildStep, Pipe, checked, encode
from harness.defenses.masks import concept_positions, masks
from harness.defenses.training import data, loop, losses
from harness.defenses.training.attention import recorded_attention
from harness.defenses.training.lora import add_lora, lora_changes

if TYPE_CHECKING:
    from harness.defenses.mace_params import MaceParams

_TARGETS = r".*\.attn2\.to_[kv]"


def low_rank_change(
    pipe: Pipe, refined: Mapping[str, Tensor], settings: MaceParams, index: int, context: BuildContext
) -> dict[str, Tensor]:
    """What the trained change of one concept adds to each refined matrix: UNet key to float32 (rows, width), CPU.

    Args:
        pipe: undefended.
        refined: the matrices after the first stage, by UNet key.
        settings: the card's.
        index: of the concept in ``settings.erase``.
        context: draws the images; progress callback and folder for checkpoints.
    """
    text = settings.erase[index]
    images = _images(pipe, settings, index, context)
    student = loop.student_of(pipe.unet)
    weights_of(student, refined)
    factors = add_lora(student, _TARGETS, settings.rank, settings.rank, settings.seed + index)
    prompts = [checked(template.replace("{}", text), settings.concept) for template in settings.templates]
    states = losses.text_states(pipe, prompts, settings.concept)
    tokens = [concept_positions(pipe, prompt, text, settings.end_tokens) for prompt in prompts]
    process = losses.NoiseProcess(pipe)
    chances = focal_weights(process.timesteps) if settings.focal else torch.ones(process.timesteps)

    def loss(step: int, generator: Generator) -> Tensor:
        prompt = int(torch.randint(len(prompts), (1,), generator=generator))
        chosen = torch.randint(len(images["latents"]), (settings.batch,), generator=generator)
        latents, mask = images["latents"][chosen], images["masks"][chosen]
        timesteps = torch.multinomial(chances, settings.batch, replacement=True, generator=generator)
        timesteps = timesteps.to(process.device)
        noisy = process.noised(latents, process.noise(latents.shape, generator), timesteps)
        with recorded_attention(student) as maps:
            losses.predict(student, noisy, timesteps, states[prompt : prompt + 1])
        return attention_left(maps, mask.to(process.device), tokens[prompt])

    def optimiser(values: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(values, lr=settings.lr, weight_decay=0.01)

    plan = loop.Training(phase=f"change-{index}", steps=settings.steps, seed=settings.seed + index, clip_norm=1.0)
    with loop.frozen(pipe.unet):
        loop.train(plan, factors, optimiser, loss, context)
    return {key: change.cpu() for key, change in lora_changes(student).items()}


def attention_left(maps: Mapping[str, Tensor], mask: Tensor, tokens: Sequence[int]) -> Tensor:
    """The sum over layers of the Frobenius norm of the attention to ``tokens`` inside ``mask`` (Eq. 5); a scalar.

    Args:
        maps: probabilities (batch, heads, pixels, window) by layer.
        mask: (batch, 1, side, side), above 0.5 where the concept shows; taken to each map's side by nearest neighbours.
        tokens: positions in the window.
    """
    terms: list[Any] = []
    for layer in maps.values():
        side = int(layer.shape[2] ** 0.5)
        inside = (interpolate(mask, (side, side)) > 0.5).flatten(2)[..., None]  # (batch, 1, pixels, 1)
        terms.append(torch.linalg.vector_norm(layer[..., list(tokens)] * inside))
    return torch.stack(terms).sum()


def weights_of(unet: torch.nn.Module, refined: Mapping[str, Tensor]) -> None:
    """Put the refined matrices into ``unet``, in place, in its dtype."""
    state = unet.state_dict()
    with torch.no_grad():
        for key, weight in refined.items():
            state[key].copy_(weight)


def focal_weights(timesteps: int) -> Tensor:
    """How likely each timestep is drawn under focal sampling (Eq. 7): most where a concept takes shape.

    The curve is the paper's for 1,000 timesteps, 200 to 400 of them, stretched to ``timesteps``.
    """
    moment = torch.arange(timesteps, dtype=torch.float64) * 1000 / timesteps
    return torch.sigmoid(0.05 * (moment - 200)) - torch.sigmoid(0.05 * (moment - 400))


def _images(pipe: Pipe, settings: MaceParams, index: int, context: BuildContext) -> dict[str, Tensor]:
    """Latents of drawn images of one concept, and where it shows in each: both by name, float32 on the CPU."""
    text = settings.erase[index]
    prompt = settings.image_template.replace("{}", text)
    seeds = [settings.seed + i for i in range(settings.images)]

    def made() -> dict[str, Tensor]:
        images = data.drawn(context, [prompt] * settings.images, seeds, settings.concept)
        latents = data.encode_images(pipe, images)
        return {"latents": latents, "masks": masks(pipe, images, latents, prompt, text, settings)}

    kept = loop.cached(context, f"images-{index}", made)
    context.report(BuildStep(f"draw {index}", settings.images, settings.images))
    encode(pipe, checked(prompt, settings.concept))  # refuses what the window would cut
    return kept
