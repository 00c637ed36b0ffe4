"""Small text-to-image pipelines with random weights: every class is the published model's own."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from harness.cards.backbone import BackboneCard
from harness.cards.weights_ref import WeightsRef

WORLD = Path(__file__).parents[1] / "harness/shapes/weights/sd"
SAMPLED = {
    "tiny-sdxl": {"pipeline": "StableDiffusionXLPipeline", "guidance": 5.0},
    "tiny-sd3": {"pipeline": "StableDiffusion3Pipeline", "guidance": 7.0, "max_sequence_length": 20},
    "tiny-flux": {"pipeline": "FluxPipeline", "guidance": 3.5, "max_sequence_length": 20},
}


def card(root: Path, name: str, **changed: Any) -> BackboneCard:
    """The card of a pipeline that lies in ``root/weights``; 24 pixels wide and 32 high."""
    plain = {
        "summary": "random weights", "source": f"package:weights/{name}", "licence": "none", "steps": 2,
        "width": 24, "height": 32, "micro_batch": 3, "memory_gb": 1, "seconds_per_image": 0.1,
    }  # fmt: skip
    whole = plain | SAMPLED[name] | changed
    return BackboneCard.model_validate(whole | {"name": name, "path": root / f"{name}.yaml", "root": root})


def declare(root: Path, made: BackboneCard) -> None:
    """Write the card to its place under ``root``."""
    folder = root / "pipelines/backbones"
    folder.mkdir(parents=True, exist_ok=True)
    content = made.model_dump(mode="json", exclude={"name"})
    (folder / f"{made.name}.yaml").write_text(json.dumps(content))


def save(root: Path, name: str) -> Path:
    """Make the pipeline and save it to ``root/weights``."""
    torch.manual_seed(8)
    folder = root / "weights" / name
    _MAKERS[name]().save_pretrained(folder)
    return folder


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WORLD, subfolder="tokenizer")


def _clip(cls: Any) -> Any:
    words = _tokenizer()
    settings = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=words.model_max_length, projection_dim=32, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return cls(settings)


def _t5() -> dict[str, Any]:
    letters = [(c, -3.0) for c in string.printable[:94]]
    words = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)
    tower = T5EncoderModel(T5Config(vocab_size=len(words), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    return {"words": words, "tower": tower}


def _vae(**changed: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **changed,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 32,
            cross_attention_dim=64,
            norm_num_groups=8,
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _sd3() -> StableDiffusion3Pipeline:
    t5 = _t5()
    return StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=_tokenizer(),
        text_encoder_3=t5["tower"],
        tokenizer_3=t5["words"],
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> FluxPipeline:
    t5 = _t5()
    return FluxPipeline(
        vae=_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_tokenizer(),
        text_encoder_2=t5["tower"],
        tokenizer_2=t5["words"],
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


_MAKERS: dict[str, Callable[[], Any]] = {"tiny-sdxl": _sdxl, "tiny-sd3": _sd3, "tiny-flux": _flux}


def publish(saved: Path, published: BackboneCard | WeightsRef, cache: Path) -> Path:
    """Lay ``saved`` out in a Hugging Face cache as the hub's repository is: those files and no other, by their names.

    Weights are cut into as many shards, text encoders keep their older key names, CLIP's tokenizers their two files.
    """
    repository = cache / f"models--{published.source.replace('/', '--')}"
    snapshot = repository / "snapshots" / str(published.revision)
    for name in published.files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        if (saved / name).is_file() and not name.endswith(".safetensors"):
            shutil.copy(saved / name, snapshot / name)
        elif name.endswith(("vocab.json", "merges.txt")):
            model = json.loads((saved / name).with_name("tokenizer.json").read_text())["model"]
            merges = "\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])])
            (snapshot / name).write_text(json.dumps(model["vocab"]) if name.endswith("json") else merges)
        elif name.endswith("special_tokens_map.json"):
            (snapshot / name).write_text("{}")
        elif name.endswith("spiece.model"):
            (snapshot / name).write_bytes(b"not read where tokenizer.json is there")
    for part in sorted({Path(n).parent for n in published.files if n.endswith(".safetensors")}):
        files = [Path(n).name for n in published.files if Path(n).parent == part and n.endswith(".safetensors")]
        (held,) = (saved / part).glob("*.safetensors")
        _cut(load_file(held), snapshot / part, files, [n for n in published.files if n.endswith("json")])
    return snapshot


def _cut(tensors: dict[str, torch.Tensor], folder: Path, files: list[str], texts: list[str]) -> None:
    if "embeddings.token_embedding.weight" in tensors:  # CLIP's text model, as it was published
        tensors = {f"text_model.{k}": v for k, v in tensors.items()}
    keys = sorted(tensors)
    parts = {file: keys[i :: len(files)] for i, file in enumerate(files)}
    for file, held in parts.items():
        save_file({k: tensors[k] for k in held}, folder / file, {"format": "pt"})
    for text in texts:
        if Path(text).parent.name == folder.name and ".index" in text:
            index = {"metadata": {}, "weight_map": {k: file for file, held in parts.items() for k in held}}
            (folder / Path(text).name).write_text(json.dumps(index))
