"""Load a backbone and draw with it: the one place that calls a diffusion model.

Every text is put to the guard here, whatever its provenance. One ``torch.Generator("cpu")`` per row,
seeded from the row; partial micro-batches are padded to full size, so that a row's image does not
depend on its batch-mates or its place.

Any text-to-image class of diffusers will do. What the known ones differ in::

    StableDiffusionPipeline      safety checker, left out; the UNet that defenses change
    StableDiffusionXLPipeline    a watermark where a package happens to be installed, never here; in float16 the
                                 autoencoder, which overflows, decodes in float32
    StableDiffusion3Pipeline     three text encoders, all of which read the one prompt
    FluxPipeline                 `guidance` is an input of the network; a negative prompt needs `true_cfg` above 1
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from harness.data.guard import guard
from harness.errors import UserError, nearest
from harness.models import loading, progress, schedulers, single_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from harness.cards.backbone import BackboneCard

# Distributions whose versions can change an image.
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "numpy")

# Schedulers that draw noise of their own, from no generator that a row could seed.
_UNREPEATABLE = ("DPMSolverSDEScheduler",)

# A checker would turn images black that are to be counted; a watermark would change them on some machines.
_LEFT_OUT = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Request(NamedTuple):
    """One image to draw. All requests of one call share guidance and size."""

    prompt: str
    seed: int  # uint64
    concept: str  # for the guard


class Canvas(NamedTuple):
    """What a micro-batch shares: guidance scale, and width and height in pixels."""

    guidance: float
    width: int
    height: int


def load(card: BackboneCard, device: str = "cpu") -> DiffusionPipeline:
    """The backbone as its card says: weights, scheduler, dtype; no safety checker, no watermark.

    Raises:
        UserError: the weights are not on this machine (nothing is downloaded here), cannot be read or do not fill their
            model, or diffusers has no such class, or the class does not take what the card says.
    """
    cls = _class(card, card.pipeline)
    _check(card, cls)
    own = card.weights()[0]
    source = str(own.place) if own.is_local else card.source.removeprefix("hub:")
    taken = inspect.signature(cls.__init__).parameters
    left_out = {key: value for key, value in _LEFT_OUT.items() if key in taken}
    how = "" if own.is_local else f"get them with `harness fetch weights {card.name}`, or "
    how += "use --profile shapes, which needs none"
    dtype = getattr(torch, card.dtype)
    with loading.loading(f"backbone {card.name}", source, how, pipeline=True):
        if card.is_single_file:
            pipe = single_file.load(card, cls, dtype, left_out)
        else:
            pipe = cls.from_pretrained(
                source,
                revision=None if own.is_local else card.revision,
                variant=card.variant,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                **left_out,
            )
    if card.scheduler:
        pipe.scheduler = schedulers.changed(f"backbone {card.name}", pipe.scheduler, card.scheduler)
    progress.follow(pipe)
    return pipe.to(device)


def options(card: BackboneCard) -> dict[str, Any]:
    """Arguments of the pipeline's call that only some pipelines take: ``true_cfg_scale``, ``max_sequence_length``."""
    extra: dict[str, Any] = {}
    if card.true_cfg > 1:
        extra["true_cfg_scale"] = card.true_cfg
    if card.max_sequence_length is not None:
        extra["max_sequence_length"] = card.max_sequence_length
    return extra


class AttachedDefense(Protocol):
    """A defense that is attached to the pipeline, as drawing sees it (``harness.defenses.base.Defense``)."""

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Reset per-image state before a micro-batch; returns further arguments for the pipeline's call."""
        ...


def sample(
    pipe: DiffusionPipeline,
    defense: AttachedDefense,
    requests: Sequence[Request],
    canvas: Canvas,
    steps: int,
    micro_batch: int,
    further: Mapping[str, Any] = _NOTHING,
) -> list[np.ndarray]:
    """Draw ``requests``; returns one array (height, width, 3) uint8 each, in order.

    Args:
        pipe: as ``load`` gives it.
        defense: attached to it already.
        requests: what to draw.
        canvas: for all of them.
        steps: of the sampler.
        micro_batch: images in one call of the pipeline.
        further: the card's ``options``.

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
        images.extend(_draw(pipe, padded, canvas, {"num_inference_steps": steps, **further}, defense)[: len(batch)])
        progress.rows(len(batch))
    return images


def _draw(
    pipe: DiffusionPipeline, batch: list[Request], canvas: Canvas, further: Mapping[str, Any], defense: AttachedDefense
) -> list[np.ndarray]:
    """One call of the pipeline."""
    extra: dict[str, Any] = {**further, **defense.begin([r.prompt for r in batch])}
    if "true_cfg_scale" in extra:
        extra.setdefault("negative_prompt", [""] * len(batch))  # without a second text FLUX leaves this guidance out
    generators = [torch.Generator("cpu").manual_seed(r.seed) for r in batch]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*upcast_vae", category=FutureWarning)  # SDXL's own call
        images = pipe(
            prompt=[r.prompt for r in batch],
            generator=generators,
            guidance_scale=canvas.guidance,
            width=canvas.width,
            height=canvas.height,
            output_type="np",
            **extra,
        ).images
    wanted = (canvas.height, canvas.width, 3)
    if images[0].shape != wanted:  # FLUX rounds a size down that is no multiple of 16
        raise ValueError(f"{type(pipe).__name__} draws {images[0].shape} where {wanted} was asked for")
    return [(255 * p).round().clip(0, 255).astype(np.uint8) for p in images]


def _class(card: BackboneCard, name: str) -> Any:
    """The class ``name`` of diffusers."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type):
        raise UserError(
            f"backbone {card.name}: diffusers {diffusers.__version__} has no class {name!r}"
            f"{nearest(name, dir(diffusers))}"
        )
    return cls


def _check(card: BackboneCard, cls: Any) -> None:
    """Refuse what a call of the class would not take, and what could not be repeated."""
    if card.scheduler in _UNREPEATABLE:
        raise UserError(
            f"backbone {card.name}: {card.scheduler} draws noise that no seed decides, so that no image could be "
            "drawn twice; take another scheduler"
        )
    taken = inspect.signature(cls.__call__).parameters
    for key, said in (("true_cfg_scale", "true_cfg"), ("max_sequence_length", "max_sequence_length")):
        if key in options(card) and key not in taken:
            raise UserError(f"backbone {card.name}: {cls.__name__} takes no {said}")
