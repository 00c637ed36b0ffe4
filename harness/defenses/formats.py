"""Published UNet weights in the forms that their authors release: found on disk, recognised by their keys, renamed.

Understood are, as safetensors or as a torch checkpoint of plain tensors, whole or in part, of any precision:

- diffusers' UNet keys, bare, under a prefix of a wrapper (``unet.``, ``module.``...) or one level down
  (``{"unet": {...}}``, ``{"state_dict": {...}}``);
- CompVis's keys (``model.diffusion_model.input_blocks...``), of a whole checkpoint or of the denoiser alone. The
  averaged copy (``model_ema``) is left aside: released defenses train the other one;
- a folder of diffusers (a UNet's own, or a pipeline's, of which the UNet is read), and weights in several files with
  their index.

Everything else is refused with what it looks like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest

TORCH = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH)
_COMPVIS = "model.diffusion_model."
_WRAPPERS = ("unet.", "module.", "_orig_mod.", "model.")
_CONTAINERS = ("unet", "state_dict", "model_state_dict", "model", "module")
# Of a whole CompVis checkpoint: autoencoder, text encoder, averaged copy, constants of the noise schedule.
_ASIDE = re.compile(
    r"(first_stage_model|cond_stage_model|model_ema)\.|(model_ema\.)?(decay|num_updates)$|betas$|alphas_cumprod|logvar$"
    r"|sqrt_|log_one_minus|posterior_|lvlb_weights$|global_step$|scale_factor$"
)
_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_LOOKS = (  # a pattern that one key matches, and what such a file is; the first that fits
    (r"lora_gloce_", "GLoCE's gates, which mechanism `gloce` loads"),
    (r"lora_(up|down|A|B)\b|\.lora\.|_lora\.", "LoRA factors, to be fused into the UNet first"),
    (r"(^|\.)to_[kv]_ip\.|^image_proj\.|^ip_adapter\.", "an IP-Adapter"),
    (r"custom_diffusion", "Custom Diffusion's attention processors"),
    (r"^text_model\.|^text_encoder\.|^transformer\.text_model\.", "a text encoder"),
    (r"add_embedding\.|label_emb\.", "the UNet of SDXL"),
    (r"input_blocks\.|output_blocks\.|middle_block\.", "CompVis's names"),
    (r"^(encoder|decoder|quant_conv|post_quant_conv)\.", "an autoencoder"),
    (r"^(double_blocks|single_blocks|single_transformer_blocks|transformer_blocks|joint_blocks)\.", "a transformer"),
    (r"^(down|up)_blocks\.|^mid_block\.", "a diffusers UNet of another architecture"),
)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights named by ``path``: itself, the shards of an index, or those of a folder.

    Raises:
        UserError: an index that cannot be read, or a folder with no or several candidates.
    """
    if path.is_dir():
        return _of_folder(path / "unet" if (path / "unet").is_dir() else path)
    if path.suffix == ".json":
        return [path.with_name(name) for name in shard_names(path)]
    return [path]


def shard_names(index: Path) -> list[str]:
    """The names of the files that an index (``*.index.json``) lists, which lie beside it.

    Raises:
        UserError: it cannot be read, or names a file elsewhere.
    """
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: is no index of weights in several files") from None
    if not named or any(not isinstance(n, str) or Path(n).name != n for n in named):
        raise UserError(f"{index}: names files that do not lie beside it")
    return named


def _of_folder(folder: Path) -> list[Path]:
    """The weights of a model's folder: by its index, else its only weights; safetensors before others."""
    indices = sorted(folder.glob("*.index*.json"))
    for suffixes in ((".safetensors",), TORCH):
        listed = [i for i in indices if f"{suffixes[0]}.index" in i.name or (suffixes is TORCH and ".bin." in i.name)]
        if len(listed) == 1:
            return [folder / name for name in shard_names(listed[0])]
        single = sorted(p for p in folder.iterdir() if p.suffix in suffixes)
        if len(single) == 1 and not listed:
            return single
        if single or listed:
            names = ", ".join(p.name for p in (*listed, *single))
            raise UserError(f"{folder}: holds several weights ({names}); name one")
    raise UserError(f"{folder}: holds no weights ({', '.join(SUFFIXES)})")


def unwrap(content: Any, where: str) -> dict[str, Any]:
    """The tensors by name of a checkpoint that may hold them one level down.

    Raises:
        UserError: nothing by name, or a checkpoint that changes the text encoder too.
    """
    while isinstance(content, dict):
        inner = next((k for k in _CONTAINERS if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        if isinstance(content.get("text_encoder"), dict) and content["text_encoder"]:
            raise UserError(f"{where}: changes the text encoder beside the UNet, which no defense here does")
        content = content[inner]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: holds no tensors by name")
    return content


def renamed(content: Mapping[str, Any], unet: Any) -> dict[str, Any]:
    """``content`` by the UNet's own keys, where its form is understood; else as it is, for ``mismatch`` to name.

    Args:
        content: key to tensor.
        unet: a diffusers UNet2DConditionModel, for its keys and its shape.
    """
    known = set(unet.state_dict())
    if any(key.startswith(_COMPVIS) for key in content):  # a whole checkpoint has more than the denoiser
        content = {key: value for key, value in content.items() if not _ASIDE.match(key)}
        content = _without(content, _COMPVIS)
    while not known.intersection(content):
        prefix = next((p for p in _WRAPPERS if content and all(key.startswith(p) for key in content)), None)
        if prefix is None:
            break
        content = _without(content, prefix)
    names = {key: key for key in known} | {compvis: key for key, compvis in compvis_names(unet).items()}
    if not known.intersection(content) and all(key in names for key in content):
        return {names[key]: value for key, value in content.items()}
    return dict(content)


def compvis_names(unet: Any) -> dict[str, str]:
    """Each key of a diffusers UNet and what the same tensor is called in CompVis's checkpoints."""
    keys = list(unet.state_dict())
    layers = int(unet.config.layers_per_block)
    attended = {match[0] for key in keys if (match := re.match(r"up_blocks\.\d+\.attentions", key))}
    return {key: _compvis(key, layers, attended) for key in keys}


def _compvis(key: str, layers: int, attended: set[str]) -> str:
    for ours, theirs in _ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if middle is not None:
        place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
        return f"middle_block.{place}.{_layer(middle[3])}"
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    if block is None:
        return key
    side, number, kind, layer, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    first = number * (layers + 1) + (1 if side == "down" else 0)
    stem = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{stem}.{first + layers}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        after = 2 if f"up_blocks.{number}.attentions" in attended else 1
        return f"{stem}.{first + layers}.{after}.{rest}"
    return f"{stem}.{first + layer}.{1 if kind == 'attentions' else 0}.{_layer(rest)}"


def _layer(rest: str) -> str:
    """A residual block's layer by CompVis's name; an attention's, which both call alike, as it is."""
    for ours, theirs in _RESNET:
        if rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    return rest


def mismatch(keys: Iterable[str], known: Mapping[str, Any]) -> str | None:
    """What is wrong with ``keys``, some of which are none of the UNet's; None where all are."""
    keys = list(keys)
    unknown = [key for key in keys if key not in known]
    if not unknown:
        return None
    shown = ", ".join(repr(key) for key in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    return (
        f"key {unknown[0]!r} is not one of the UNet's{nearest(unknown[0], known)} "
        f"({len(unknown)} of {len(keys)} keys are not: {shown}); it looks like {looks_like(unknown)}"
    )


def looks_like(keys: Iterable[str]) -> str:
    """What a file with such keys is, as far as is known."""
    keys = list(keys)
    return next((what for pattern, what in _LOOKS if any(re.search(pattern, k) for k in keys)), "no form known here")


def _without(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``content`` without ``prefix`` where a key has it."""
    return {key.removeprefix(prefix): value for key, value in content.items()}
