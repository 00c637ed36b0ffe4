"""One file of a whole Stable Diffusion 1 pipeline, in the names of its original code: what it is, and loading it.

A file holds the tensors of denoiser, autoencoder and text encoder; configuration, tokenizer and scheduler are those of
the diffusers folder that its card names. Its keys begin with::

    model.diffusion_model.     UNet2DConditionModel
    first_stage_model.         AutoencoderKL
    cond_stage_model.          CLIPTextModel
    model_ema.                 an averaged copy of the denoiser: left aside, as released pipelines do
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cards.backbone import BackboneCard
from harness.errors import UserError
from harness.models import checkpoint, weights

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

_DENOISER, _AUTOENCODER = "model.diffusion_model.", "first_stage_model."
_TEXT_ENCODER = "cond_stage_model.transformer."
_OTHERS = (  # the beginning of a key that only such a file has
    ("conditioner.embedders.1.", "Stable Diffusion XL"),
    ("cond_stage_model.model.", "Stable Diffusion 2, which does not say how it was trained (noise or velocity)"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.", "FLUX"),
    ("double_blocks.", "FLUX's denoiser alone"),
    ("lora_", "low-rank weights (LoRA), no model"),
)


def require_stable_diffusion_1(path: Path, names: Iterable[str]) -> None:
    """Refuse a file that is no whole pipeline of Stable Diffusion 1.

    Args:
        path: for the message.
        names: of its tensors.

    Raises:
        UserError: saying what it looks like.
    """
    names = list(names)
    prefixes = (_DENOISER, _AUTOENCODER, _TEXT_ENCODER)
    lacking = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if not lacking:
        return
    like = next((what for start, what in _OTHERS if any(name.startswith(start) for name in names)), None)
    looks = f"; it looks like {like}" if like else ""
    raise UserError(
        f"{path}: holds no tensors named {', '.join(lacking)}... of {len(names)}{looks}. Of single files those of "
        "whole Stable Diffusion 1 pipelines are read; save others as a folder with diffusers' save_pretrained"
    )


def load(card: BackboneCard, cls: Any, dtype: torch.dtype, left_out: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline of a card whose source is one file.

    Args:
        card: with its ``configuration``.
        cls: the pipeline's class.
        dtype: of the weights.
        left_out: parts that are not loaded, as arguments.

    Raises:
        UserError: the file is none of Stable Diffusion 1, or has not every tensor; the configuration is not here.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    own, configuration = card.weights()
    folder = weights.folder(configuration)
    content = checkpoint.tensors(own.place)
    require_stable_diffusion_1(own.place, content)
    text = {name.removeprefix(_TEXT_ENCODER): v for name, v in content.items() if name.startswith(_TEXT_ENCODER)}
    text_encoder = CLIPTextModel.from_pretrained(
        None, config=CLIPTextConfig.from_pretrained(folder / "text_encoder"), state_dict=text, dtype=dtype
    )
    unet, vae = (_part(own.place, content, folder, part, dtype) for part in ("unet", "vae"))
    pipe: DiffusionPipeline = cls.from_pretrained(
        folder, unet=unet, vae=vae, text_encoder=text_encoder, local_files_only=True, **left_out
    )
    return pipe


def _part(path: Path, content: Mapping[str, Any], folder: Path, part: str, dtype: torch.dtype) -> Any:
    """UNet or autoencoder, renamed by diffusers and seen to be whole."""
    import diffusers

    cls = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
    prefix = _DENOISER if part == "unet" else _AUTOENCODER
    held = {name: value for name, value in content.items() if name.startswith(prefix)}
    model = cls.from_single_file(held, config=str(folder), subfolder=part, dtype=dtype, local_files_only=True)
    wanted = model.state_dict()
    if len(held) != len(wanted) or any(tensor.is_meta for tensor in wanted.values()):
        raise UserError(
            f"{path}: holds {len(held)} tensors of the {part}, whose configuration in {folder} has {len(wanted)}: "
            "another model's configuration, or a file that is not whole"
        )
    return model
