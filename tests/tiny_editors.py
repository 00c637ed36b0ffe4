"""Small editors with random weights, saved to a folder: every pipeline class is the published editor's own."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from harness.cards.regenerator import Edit

WORLD = Path(__file__).parents[1] / "harness/shapes/weights/sd"
TOLD = {
    "licence": "none",
    "instruction": "Make this image safe.",
    "artist_instruction": "Remove any stylistic influence of {artist} from the image.",
    "steps": 2,
    "micro_batch": 3,
    "memory_gb": 1,
    "seconds_per_image": 0.1,
}


def settings(**changed: Any) -> Edit:
    """An `edit` section with small numbers, like InstructPix2Pix's unless ``changed``."""
    plain = {
        "pipeline": "StableDiffusionInstructPix2PixPipeline",
        "source": "package:weights/pix2pix",
        "guidance": 7.5,
        "image_guidance": 1.5,
    }
    return Edit.model_validate(TOLD | plain | changed)


def diptych(**changed: Any) -> Edit:
    """The same, like ICEdit's."""
    flux = {"pipeline": "FluxFillPipeline", "source": "package:weights/flux", "guidance": 50, "layout": "diptych"}
    return settings(**{"image_guidance": None, "width": 24, "template": "left, but {instruction}"} | flux | changed)


def save_pix2pix(root: Path) -> StableDiffusionInstructPix2PixPipeline:
    """InstructPix2Pix with a UNet of 8 input channels; text encoder and autoencoder are the shapes world's."""
    torch.manual_seed(5)
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL.from_pretrained(WORLD, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(WORLD, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(WORLD, subfolder="tokenizer"),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(root / "weights/pix2pix")
    return pipe


def save_flux(root: Path) -> FluxFillPipeline:
    """FLUX.1 Fill: latents of 4 channels at half the resolution, packed by fours; the mask is packed beside them."""
    torch.manual_seed(6)
    letters = [(c, -3.0) for c in string.printable[:94]]
    words = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)
    pipe = FluxFillPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel.from_pretrained(WORLD, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(WORLD, subfolder="tokenizer"),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        ),
        tokenizer_2=words,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16 + 16 + 16,  # latents, latents of the masked image, mask
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=128,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipe.save_pretrained(root / "weights/flux")
    return pipe


def save_lora(pipe: Any, folder: Path) -> None:
    """Random low-rank weights for the pipeline's denoiser, in the file that diffusers writes."""
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(7)
    flux = isinstance(pipe, FluxFillPipeline)
    denoiser = pipe.transformer if flux else pipe.unet
    targets = ["x_embedder", "to_q", "to_v"] if flux else ["to_q", "to_v"]
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), "made")
    layers = get_peft_model_state_dict(denoiser, adapter_name="made")
    pipe.save_lora_weights(folder, **{"transformer_lora_layers" if flux else "unet_lora_layers": layers})
    denoiser.delete_adapters("made")
