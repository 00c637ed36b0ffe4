"""Training images, drawn by the undefended backbone and encoded to latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.defenses.base import BuildContext, BuildStep, Pipe, checked
from harness.defenses.training.loop import batches, cached
from harness.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_AT_ONCE = 16  # images between two reports and two files


def drawn(context: BuildContext, texts: Sequence[str], seeds: Sequence[int], concept: str) -> list[Image]:
    """One image for each text and seed, in order, by the undefended backbone.

    Raises:
        UserError: this build has nobody to draw for it, or the guard refuses a text.
    """
    if context.draw is None:
        raise UserError("this defense trains on images that the backbone draws; build it with `harness build`")
    return context.draw([checked(text, concept) for text in texts], list(seeds))


def latents(
    pipe: Pipe, context: BuildContext, name: str, texts: Sequence[str], seeds: Sequence[int], concept: str
) -> Tensor:
    """Latents of one image for each text and seed: (texts, channels, height, width) float32 on the CPU.

    The mean of the autoencoder's posterior, scaled as the denoiser knows latents. Drawn in pieces, each kept in the
    build's folder, so that a build that is stopped does not draw again what it has.

    Args:
        pipe: for its autoencoder.
        context: draws the images, and gets the progress.
        name: of this set of images, unique within the build.
        texts: what to draw.
        seeds: one for each text.
        concept: of the run, for the guard.
    """
    pieces: list[Tensor] = []
    for piece in batches(len(texts), _AT_ONCE):

        def encoded(piece: range = piece) -> dict[str, Tensor]:
            images = drawn(context, [texts[i] for i in piece], [seeds[i] for i in piece], concept)
            return {"latents": encode_images(pipe, images)}

        pieces.append(cached(context, f"{name}-{piece.start}", encoded)["latents"])
        context.report(BuildStep(f"draw {name}", piece.stop, len(texts)))
    return torch.cat(pieces)


def encode_images(pipe: Pipe, images: Sequence[Image]) -> Tensor:
    """Images of one size as scaled latents, (images, channels, height, width) float32 on the CPU; no sampling."""
    autoencoder = pipe.vae
    weight = next(autoencoder.parameters())
    array = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    pixels = torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = autoencoder.encode(pixels.to(weight)).latent_dist.mean
    shift = getattr(autoencoder.config, "shift_factor", None) or 0.0
    scaled: Tensor = (mean.float().cpu() - shift) * autoencoder.config.scaling_factor
    return scaled.contiguous()
