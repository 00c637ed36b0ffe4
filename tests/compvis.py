"""A pipeline of Stable Diffusion 1 as one file, by the names of its original code, written out from its published code.

Names of the UNet's tensors are those that the defenses' readers know (``harness.defenses.formats``); those of
autoencoder and text encoder stand here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from harness.defenses.formats import compvis_names

_VAE_ENDS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def tensors(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Every tensor of denoiser, autoencoder and text encoder by its original name."""
    names = compvis_names(pipe.unet)
    unet = {f"model.diffusion_model.{names[key]}": value for key, value in pipe.unet.state_dict().items()}
    blocks = len(pipe.vae.config.block_out_channels)
    vae = {f"first_stage_model.{_vae_name(key, blocks)}": _vae(key, v) for key, v in pipe.vae.state_dict().items()}
    text = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in pipe.text_encoder.state_dict().items()}
    words = {f"cond_stage_model.transformer.{key}": value for key, value in text.items()}
    return {key: value.contiguous() for key, value in (unet | vae | words).items()}


def save_safetensors(pipe: StableDiffusionPipeline, path: Path) -> None:
    save_file(tensors(pipe), path)


def save_ckpt(pipe: StableDiffusionPipeline, path: Path, **beside: Any) -> None:
    """As a trainer leaves it: the tensors under ``state_dict``, its own state beside them."""
    torch.save({"state_dict": tensors(pipe), "epoch": 1, **beside}, path)


def _vae(key: str, value: torch.Tensor) -> torch.Tensor:
    """The original's attention is made of 1 x 1 convolutions."""
    linear = "attentions" in key and "group_norm" not in key and value.ndim == 2
    return value[:, :, None, None] if linear else value


def _vae_name(key: str, blocks: int) -> str:
    match = re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", key
    )
    if match is not None:
        side, way, number, kind, layer, rest = match.groups()
        place = int(number) if way == "down" else blocks - 1 - int(number)
        part = f"block.{layer}" if kind == "resnets" else f"{way}sample"
        return _ends(f"{side}.{way}.{place}.{part}.{rest}")
    middle = re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if middle is None:
        return _ends(key)
    side, kind, layer, rest = middle.groups()
    if kind == "resnets":
        return _ends(f"{side}.mid.block_{int(layer) + 1}.{rest}")
    name, _, end = rest.rpartition(".")
    return f"{side}.mid.attn_1.{_VAE_ATTENTION[name]}.{end}"


def _ends(key: str) -> str:
    for ours, theirs in _VAE_ENDS.items():
        key = re.sub(rf"(?<=\.){ours}(?=\.)", theirs, key)
    return key
