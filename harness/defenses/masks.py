"""Where in an image a concept shows: by a segmenter, by the denoiser's own attention, or everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.cards.weights_ref import HUB
from harness.data.hub import cached_file
from harness.defenses.base import Pipe
from harness.defenses.training import losses
from harness.defenses.training.attention import recorded_attention
from harness.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from harness.defenses.mace_params import MaceParams

_LEVEL = 0.4  # of the timesteps: noisy enough that attention still decides what comes where
_BOX, _WORDS = 0.3, 0.25  # least confidence of a box, and of the words that it answers to


def masks(pipe: Pipe, images: Sequence[Image], latents: Tensor, prompt: str, text: str, wanted: MaceParams) -> Tensor:
    """1 where the concept shows in each image and 0 elsewhere: (images, 1, side, side) float32 on the CPU.

    Args:
        pipe: undefended; asked by ``attention``.
        images: of one size.
        latents: the same images' (images, channels, height, width).
        prompt: that they were drawn from.
        text: the concept, as it stands in the prompt.
        wanted: the provider and its settings. ``segmenter`` boxes the text by GroundingDINO and cuts the boxes' content
            out by SAM; ``attention`` takes where the undefended denoiser, shown the image with some noise, attends to
            the text's words; ``everywhere`` needs nothing.

    Raises:
        UserError: a model that is not on this machine, or no attention map of the side asked for.
    """
    if wanted.mask == "segmenter":
        return segmented(images, text, wanted.detector, wanted.segmenter)
    if wanted.mask == "attention":
        return attended(pipe, latents, prompt, text, wanted)
    return torch.ones(len(images), 1, 1, 1)


def require(wanted: MaceParams) -> None:
    """Refuse a segmenter that is not on this machine, before images are drawn for it. Nothing is loaded.

    Raises:
        UserError: which of its two models, and how to get it.
    """
    for source in (wanted.detector, wanted.segmenter) if wanted.mask == "segmenter" else ():
        place = source.removeprefix(HUB)
        config = cached_file(place, "config.json") if source.startswith(HUB) else Path(source, "config.json")
        if config is None or not config.is_file():
            raise UserError(
                f"mace's masks need {place}, which is not on this machine: get it with `hf download {place}`"
            )


def attended(pipe: Pipe, latents: Tensor, prompt: str, text: str, wanted: MaceParams) -> Tensor:
    """Masks by the undefended denoiser's attention to the words of ``text`` in ``prompt``."""
    process = losses.NoiseProcess(pipe)
    timesteps = torch.full((len(latents),), int(_LEVEL * process.timesteps), device=process.device)
    noise = process.noise(latents.shape, torch.Generator("cpu").manual_seed(wanted.seed))
    states = losses.text_states(pipe, [prompt], wanted.concept)
    with torch.no_grad(), recorded_attention(pipe.unet) as maps:
        losses.predict(pipe.unet, process.noised(latents, noise, timesteps), timesteps, states)
    positions = concept_positions(pipe, prompt, text, end_tokens=False)
    return concept_mask(maps, positions, wanted.mask_side, wanted.mask_threshold).cpu()


def concept_positions(pipe: Pipe, prompt: str, text: str, end_tokens: bool) -> list[int]:
    """Positions of ``text``'s tokens in ``prompt``, and on request those of the end token and all that share its id."""
    tokenizer = pipe.tokenizer
    window = int(tokenizer.model_max_length)
    ids = tokenizer(prompt, padding="max_length", max_length=window).input_ids
    own = tokenizer(text, add_special_tokens=False).input_ids
    positions = [i + j for i in range(window) if ids[i : i + len(own)] == own for j in range(len(own))]
    if end_tokens:
        positions += [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
    return sorted(set(positions))


def concept_mask(maps: Mapping[str, Tensor], tokens: Sequence[int], side: int, threshold: float) -> Tensor:
    """Where a text's tokens are attended to: (batch, 1, side, side) float32, 1 there and 0 elsewhere.

    Args:
        maps: attention probabilities (batch, heads, pixels, window) by module.
        tokens: positions of the text's tokens in the window.
        side: only maps of this many pixels a side count, averaged over heads, tokens and modules.
        threshold: of the averaged map, scaled to 0..1 image by image.

    Raises:
        UserError: no map has that side.
    """
    fitting = [m[..., list(tokens)].mean(dim=(1, 3)) for m in maps.values() if m.shape[2] == side * side]
    if not fitting:
        sides = sorted({int(m.shape[2] ** 0.5) for m in maps.values()})
        raise UserError(f"this denoiser's attention maps have sides {sides}, not `mask_side` {side}")
    mean = torch.stack(fitting).mean(0).float()
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    scaled = (mean - low) / (high - low).clamp(min=torch.finfo(mean.dtype).tiny)
    mask: Tensor = (scaled >= threshold).float().reshape(-1, 1, side, side)
    return mask


def segmented(images: Sequence[Image], text: str, detector: str, segmenter: str) -> Tensor:
    """Masks by GroundingDINO's boxes for ``text``, cut out by SAM; an image without a box has an empty mask.

    Args:
        images: of one size.
        text: what to look for.
        detector: a folder or ``hub:OWNER/REPO``, a zero-shot detector of transformers.
        segmenter: the same, a ``SamModel``.

    Raises:
        UserError: not on this machine, or damaged.
    """
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

    find, read = _loaded(detector, AutoModelForZeroShotObjectDetection, AutoProcessor)
    cut, frame = _loaded(segmenter, SamModel, SamProcessor)
    result = []
    for image in images:
        rgb = image.convert("RGB")
        size = [(rgb.height, rgb.width)]
        mask = np.zeros(size[0], dtype=np.float32)
        with torch.no_grad():
            inputs = read(images=rgb, text=f"{text.lower()}.", return_tensors="pt")
            boxes = read.post_process_grounded_object_detection(
                find(**inputs), inputs.input_ids, threshold=_BOX, text_threshold=_WORDS, target_sizes=size
            )[0]["boxes"]
            if len(boxes):
                framed = frame(rgb, input_boxes=[boxes.tolist()], return_tensors="pt")
                masks = cut(**framed, multimask_output=False).pred_masks
                cuts = frame.image_processor.post_process_masks(
                    masks, framed["original_sizes"], framed["reshaped_input_sizes"]
                )[0]
                mask = cuts.any(dim=0).any(dim=0).float().numpy()
        result.append(torch.from_numpy(mask)[None])
    return torch.stack(result)


def _loaded(source: str, model: Any, processor: Any) -> tuple[Any, Any]:
    """A model of transformers and its processor, from this machine alone."""
    from harness.models import loading

    place = source.removeprefix(HUB)
    with loading.loading("mace's masks", place, f"get it with `hf download {place}`"):
        return (
            model.from_pretrained(place, local_files_only=True, use_safetensors=True).eval(),
            processor.from_pretrained(place, local_files_only=True),
        )
