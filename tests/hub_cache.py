"""A Hugging Face cache as a download leaves it, with small random models of the `paper` profile's classes.

Ids, revisions and file names are those that the cards pin; CLIP's vocabulary is the published one, which the package
clip-anytorch carries.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_backbones import publish
from tiny_captioners import save_qwen2_vl
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.weights_ref import WeightsRef

_MERGES = 48_894  # of OpenAI's file those that CLIP uses: 49408 tokens are 2 x 256 bytes, the merges, and two marks


def fill(cache: Path, scratch: Path) -> None:
    """Put SD 1.4, CLIP ViT-L/14 and Qwen2-VL into ``cache``, with few and narrow layers and random weights.

    Args:
        cache: what HF_HUB_CACHE will be.
        scratch: an empty folder.
    """
    torch.manual_seed(4)
    roots = card_roots()
    words = _clip_tokenizer(scratch / "vocabulary")
    backbone = load_card(BackboneCard, "sd-1-4", roots)
    _stable_diffusion(words).save_pretrained(scratch / "sd")
    _link(publish(scratch / "sd", backbone, cache), cache, backbone.weights()[0])
    (clip,) = load_card(ProfileCard, "paper", roots).weights()
    _link(_clip(words, scratch / "clip"), cache, clip)
    (captioner,) = load_card(JudgeCard, "qwen2-vl-7b", roots).weights()
    save_qwen2_vl(scratch / "qwen")
    _link(_as_published(scratch / "qwen", captioner.files), cache, captioner)


def _link(folder: Path, cache: Path, weights: WeightsRef) -> None:
    """Lay the files that the card names out as the hub's client does: a blob by its hash, a link by its name."""
    repository = cache / f"models--{weights.source.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    for name in weights.files:
        content = (folder / name).read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = repository / "snapshots" / str(weights.revision) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(*[".."] * (len(Path(name).parts) + 1), "blobs", blob.name))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(str(weights.revision))


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own, from the merges that OpenAI published."""
    package = importlib.util.find_spec("clip")  # found, not imported: its code wants other packages
    assert package is not None
    assert package.submodule_search_locations
    archive = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(archive.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, printed), *(chr(256 + i) for i in range(256 - len(printed)))]
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = [*letters, *(f"{c}</w>" for c in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _stable_diffusion(words: CLIPTokenizer) -> StableDiffusionPipeline:
    """SD 1.4's parts, each with its layers counted and narrowed."""
    settings = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),  # eight pixels to a latent, as in SD 1.4
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(settings),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8,
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=False,
    )


def _clip(words: CLIPTokenizer, folder: Path) -> Path:
    """CLIP ViT-L/14's classes: its vocabulary, window and image size, everything else narrow."""
    text = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,  # as OpenAI's card has them
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 224, "patch_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessor(crop_size=224, size={"shortest_edge": 224}).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((folder.parent / "vocabulary" / name).read_bytes())
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<|endoftext|>"}))
    return folder


def _as_published(folder: Path, files: Sequence[str]) -> Path:
    """Weights in as many files as the hub has, with their index."""
    parts = sorted(name for name in files if name.endswith(".safetensors"))
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    for i, name in enumerate(parts):
        save_file({k: tensors[k] for k in keys[i :: len(parts)]}, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: parts[i % len(parts)] for i, k in enumerate(keys)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
