"""Load a backbone and draw with it: the one place that calls a diffusion model.

Every text is put to the guard here, whatever its origin. One ``torch.Generator("cpu")`` per row,
seeded from the row; partial micro-batches are padded to full size, so that a row's picture does not
depend on its batch-mates or its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from harness.errors import UserError
from harness.guard import guard

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from harness.cards import BackboneCard
    from harness.defenses import Defense

# Distributions whose versions can change a picture.
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "numpy")
MODULES = ("harness.backbones", "harness.guard")


class Request(NamedTuple):
    """One picture to draw. All requests of one call share guidance and size."""

    prompt: str
    seed: int  # uint64
    concept: str  # for the guard


class Canvas(NamedTuple):
    """What a micro-batch shares: guidance scale, and width and height in pixels."""

    guidance: float
    width: int
    height: int


def weights_folder(card: BackboneCard) -> Path | None:
    """The local folder of a packaged backbone; None for one that comes from the hub."""
    if not card.source.startswith("package:harness/"):
        return None
    return Path(__file__).parent / card.source.removeprefix("package:harness/")


def load(card: BackboneCard, device: str = "cpu") -> StableDiffusionPipeline:
    """The backbone as its card says: weights, scheduler, dtype; no safety checker.

    Raises:
        UserError: the weights are not on this machine (nothing is downloaded here).
    """
    import diffusers
    import transformers

    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()  # it would draw over ours
    folder = weights_folder(card)
    source, revision = (str(folder), None) if folder else (card.source.removeprefix("hub:"), card.revision)
    cls = getattr(diffusers, card.pipeline)
    try:
        pipe = cls.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, card.dtype),
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
            use_safetensors=True,
        )
    except OSError as error:
        raise UserError(
            f"backbone {card.name}: weights of {source} are not on this machine ({str(error).splitlines()[0]}); "
            f"get them with `harness fetch weights {card.name}`, or use --profile shapes, which needs none"
        ) from error
    if card.scheduler:
        pipe.scheduler = getattr(diffusers, card.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def sample(
    pipe: StableDiffusionPipeline,
    defense: Defense,
    requests: Sequence[Request],
    canvas: Canvas,
    steps: int,
    micro_batch: int,
) -> list[np.ndarray]:
    """Draw ``requests``; returns one array (height, width, 3) uint8 each, in order.

    Raises:
        RowError: the guard refuses a prompt (refuse it before, to keep its batch-mates).
        ValueError: the backbone refuses the canvas.
    """
    for request in requests:
        guard(request.prompt, request.concept)
    images: list[np.ndarray] = []
    for start in range(0, len(requests), micro_batch):
        batch = list(requests[start : start + micro_batch])
        padded = batch + [batch[-1]] * (micro_batch - len(batch))
        images.extend(_draw(pipe, defense, padded, canvas, steps)[: len(batch)])
    return images


def _draw(
    pipe: StableDiffusionPipeline, defense: Defense, batch: list[Request], canvas: Canvas, steps: int
) -> list[np.ndarray]:
    extra: dict[str, Any] = defense.begin(len(batch))
    generators = [torch.Generator("cpu").manual_seed(r.seed) for r in batch]
    with torch.inference_mode():
        pictures = pipe(
            prompt=[r.prompt for r in batch],
            generator=generators,
            guidance_scale=canvas.guidance,
            num_inference_steps=steps,
            width=canvas.width,
            height=canvas.height,
            output_type="np",
            **extra,
        ).images
    return [(255 * p).round().clip(0, 255).astype(np.uint8) for p in pictures]
