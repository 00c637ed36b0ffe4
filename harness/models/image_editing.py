"""Image-to-image editors that are told in words what to change: InstructPix2Pix, Instruct-CLIP, ICEdit.

The paper compares ReSafe with them (Sections 4.1 and D.2). Each is diffusers' own pipeline class with
published weights, and a card says which. Two layouts::

    single     instruction + image -> image                                     (InstructPix2Pix)
    diptych    image | image, right half masked -> filled in; the right half    (ICEdit on FLUX.1 Fill)

Every text is put to the guard here, and each row draws from its own ``torch.Generator("cpu")`` in
micro-batches of full size, so that a row's image does not depend on its batch-mates.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.cards.places import PACKAGE, locate
from harness.cards.regenerator import Edit, Lora
from harness.cards.weights_ref import WeightsRef
from harness.data.concepts import ARTISTS
from harness.data.guard import guard
from harness.data.hub import cached_file
from harness.errors import UserError, nearest
from harness.models import loading, progress, schedulers, weights
from harness.store.fingerprint import FileHashes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Distributions and modules whose change makes an edited image another one.
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "peft", "numpy", "pillow")

GRID = 8  # pixels a latent stands for in the published autoencoders: sizes are multiples of it
ADAPTER = "edit"

ImageArray = NDArray[np.uint8]  # (height, width, 3)


class Job(NamedTuple):
    """One image to edit."""

    image: ImageArray
    seed: int  # uint64
    concept: str  # what is to go; also for the guard


def instruction(edit: Edit, concept: str) -> str:
    """What the editor is told to do about ``concept`` (Appendix D.2), without the editor's own wrapping."""
    artist = ARTISTS.get(concept)
    return edit.instruction if artist is None else edit.artist_instruction.replace("{artist}", artist)


def prompt(edit: Edit, concept: str) -> str:
    """The prompt of the pipeline: the instruction in the card's template."""
    return edit.template.replace("{instruction}", instruction(edit, concept))


def pinned(edit: Edit, name: str = "NAME") -> Edit:
    """``edit`` with a revision for every hub source: one that its card leaves open gets this machine's commit.

    Raises:
        UserError: an unpinned source is not on this machine.
    """
    base, *rest = (s.revision or _commit(s, name) for s in edit.weights(name, PACKAGE))
    changed: dict[str, Any] = {"revision": base}
    if edit.lora is not None:
        changed["lora"] = edit.lora.model_copy(update={"revision": rest[0]})
    return edit.model_copy(update=changed)


def identity(edit: Edit, root: Path, hashes: FileHashes | None = None, name: str = "NAME") -> dict[str, Any]:
    """What identifies the weights: by source, the hub's commit, or each local file's sha256.

    Args:
        root: the card's root, for ``package:`` sources.
        hashes: remembers the files that were read before.
        name: the card's, for messages.

    Raises:
        UserError: a local or unpinned source is not on this machine.
    """
    hashes = hashes or FileHashes()
    identities: dict[str, Any] = {}
    for part, source in zip(("base", "lora"), pinned(edit, name).weights(name, root), strict=False):
        identities[part] = source.revision
        if source.is_local:
            folder = _folder(source.source, root)
            whole = weights.identity(source, hashes) if part == "base" else None
            identities[part] = hashes.of(_file(folder, source)) if whole is None else whole
    return identities


def load(edit: Edit, root: Path, device: str = "cpu", name: str = "NAME") -> DiffusionPipeline:
    """The editor as its card says: weights, LoRA, scheduler, dtype; no safety checker.

    Args:
        root: the card's root, for ``package:`` sources.
        name: the card's, for messages.

    Raises:
        UserError: something is not on this machine (nothing is downloaded here), or does not fit.
    """
    import torch

    cls = _class(edit.pipeline)
    # A checker would turn images black that are to be counted.
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    taken = inspect.signature(cls.__init__).parameters
    own = edit.weights(name, root)[0]
    source = str(_folder(edit.source, root)) if own.is_local else edit.source
    with loading.loading(f"regenerator {name}", _shown(own), _get(own, name), pipeline=True):
        pipe = cls.from_pretrained(
            source,
            revision=edit.revision,
            dtype=getattr(torch, edit.dtype),
            local_files_only=True,
            use_safetensors=True,
            **{key: value for key, value in unchecked.items() if key in taken},
        )
    if edit.lora is not None:
        _add(edit.lora, pipe, root, name)
    if edit.scheduler:
        pipe.scheduler = schedulers.changed(f"regenerator {name}", pipe.scheduler, edit.scheduler)
    progress.follow(pipe)
    return pipe.to(device)


def edit(pipe: Any, settings: Edit, jobs: Sequence[Job]) -> list[ImageArray]:
    """Edit ``jobs``; one array (height, width, 3) uint8 each, in order, at the size that the editor gives.

    Raises:
        RowError: the guard refuses the instruction (refuse it before, to keep its batch-mates).
    """
    for job in jobs:
        guard(prompt(settings, job.concept), job.concept)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, job in enumerate(jobs):
        height, width = job.image.shape[:2]
        groups.setdefault(canvas(settings, width, height), []).append(i)
    images: dict[int, ImageArray] = {}
    for size, members in groups.items():
        for start in range(0, len(members), settings.micro_batch):
            batch = members[start : start + settings.micro_batch]
            padded = batch + [batch[-1]] * (settings.micro_batch - len(batch))
            images |= zip(batch, _draw(pipe, settings, [jobs[i] for i in padded], size), strict=False)
            progress.rows(len(batch))
    return [_restored(images[i], job.image) if settings.restore_size else images[i] for i, job in enumerate(jobs)]


def canvas(settings: Edit, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels at which an image of ``width`` x ``height`` is edited: multiples of 8."""
    if settings.width is not None:
        wide, high = settings.width, settings.height or height * settings.width // width
    elif settings.height is not None:
        wide, high = width * settings.height // height, settings.height
    else:
        wide, high = width, height
    return max(GRID, wide // GRID * GRID), max(GRID, high // GRID * GRID)


def diptych(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """ICEdit's canvas and mask: the image twice side by side, and white where the right one is to be filled in."""
    width, height = image.size
    both = Image.new("RGB", (2 * width, height))
    both.paste(image, (0, 0))
    both.paste(image, (width, 0))
    mask = Image.new("L", both.size, 0)
    mask.paste(255, (width, 0, 2 * width, height))
    return both, mask


def _draw(pipe: Any, settings: Edit, jobs: Sequence[Job], size: tuple[int, int]) -> list[ImageArray]:
    """Call the pipeline once."""
    import torch

    images = [_resized(job.image, size, settings.layout) for job in jobs]
    asked: dict[str, Any] = {"image": images}
    if settings.layout == "diptych":
        canvases, masks = zip(*map(diptych, images), strict=True)
        asked = {"image": list(canvases), "mask_image": list(masks), "width": 2 * size[0], "height": size[1]}
    if settings.image_guidance is not None:
        asked["image_guidance_scale"] = settings.image_guidance
    with torch.inference_mode():
        drawn = pipe(
            prompt=[prompt(settings, job.concept) for job in jobs],
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            guidance_scale=settings.guidance,
            num_inference_steps=settings.steps,
            output_type="np",
            **asked,
        ).images
    if settings.layout == "diptych":
        drawn = [p[:, p.shape[1] // 2 :] for p in drawn]
    return [(255 * p).round().clip(0, 255).astype(np.uint8) for p in drawn]


def _resized(array: ImageArray, size: tuple[int, int], layout: str) -> Image.Image:
    """The image at ``size``, by the filter of each layout's published code."""
    image = Image.fromarray(array)
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC if layout == "diptych" else Image.Resampling.LANCZOS)


def _restored(image: ImageArray, original: ImageArray) -> ImageArray:
    if image.shape == original.shape:
        return image
    height, width = original.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type):
        raise UserError(f"diffusers {diffusers.__version__} has no class {name!r}{nearest(name, dir(diffusers))}")
    return cls


def _add(lora: Lora, pipe: Any, root: Path, name: str) -> None:
    """Put the low-rank weights into the pipeline, and see that all of them found their place."""
    if find_spec("peft") is None:
        raise UserError(f"regenerator {name}: LoRA weights need the package peft; `pip install peft`")
    path = _lora_file(lora.weights(name, root), root, name)
    wanted = _pairs(path)
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of every part that the file leaves alone; see below
    try:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
        pipe.set_adapters(ADAPTER, adapter_weights=lora.scale)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"regenerator {name}: {path} does not fit {type(pipe).__name__}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    placed = sum(
        f".lora_A.{ADAPTER}." in key
        for part in pipe.components.values()
        if hasattr(part, "named_parameters")
        for key, _ in part.named_parameters()
    )
    if not wanted or placed < wanted:  # unknown names are passed over with no more than a warning
        raise UserError(
            f"regenerator {name}: {path} does not fit {type(pipe).__name__}: {placed} of {wanted} layers found a place"
        )


def _pairs(path: Path) -> int:
    """How many layers a LoRA file changes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            keys = file.keys()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error
    return sum(bool(re.search(r"lora(_A|_down|\.down|_linear_layer\.down)\.weight$", key)) for key in keys)


def _lora_file(source: WeightsRef, root: Path, name: str) -> Path:
    if source.is_local:
        return _file(_folder(source.source, root), source)
    path = cached_file(source.source, source.files[0], source.revision)
    if path is None:
        raise UserError(_absent(source, name, f"{source.files[0]} is not in the Hugging Face cache"))
    return path


def _folder(source: str, root: Path) -> Path:
    folder = locate(source, root)
    if not folder.is_dir():
        raise UserError(f"no folder {folder} (the card's source is {source!r})")
    return folder


def _file(folder: Path, source: WeightsRef) -> Path:
    path = folder / source.files[0]
    if not path.is_file():
        raise UserError(f"no file {path} (the card's source is {source.source!r})")
    return path


def _commit(source: WeightsRef, name: str) -> str | None:
    """The commit of an unpinned hub source that this machine holds; None for a local one."""
    if source.is_local:
        return None
    path = cached_file(source.source, source.files[0], source.revision)
    if path is None:
        raise UserError(_absent(source, name, "its card names no revision, and no commit is in the cache"))
    return path.parents[source.files[0].count("/")].name  # .../snapshots/<commit>/<file>


def _absent(source: WeightsRef, name: str, reason: str) -> str:
    get = _get(source, name)
    said = f"regenerator {name}: weights of {_shown(source)} are not on this machine ({reason})"
    return f"{said}; {get}" if get else said


def _shown(source: WeightsRef) -> str:
    """The repository, as messages name it."""
    return source.source if source.revision is None else f"{source.source}@{source.revision[:8]}"


def _get(source: WeightsRef, name: str) -> str:
    """How to get what is not there; nothing for what lies in the package."""
    if source.is_local:
        return ""
    gate = f"; gated: accept the terms at https://huggingface.co/{source.source} first" if source.gated else ""
    return f"get them with `harness fetch weights {name}`{gate}"
