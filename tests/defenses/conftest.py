"""A real, small StableDiffusionPipeline with random weights: every class is the one that SD 1.4 uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH, WINDOW = 128, 24
WORDS = ("star", "ring", "red", "blue", "square", "art")


def tokenizer() -> CLIPTokenizer:
    """Letters are tokens; each of WORDS is one token, by merges from left to right that share no pair."""
    letters = [chr(c) for c in range(33, 127)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    vocabulary = [*letters, *(c + "</w>" for c in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={w: i for i, w in enumerate(vocabulary)}, merges=list(dict.fromkeys(merges)), model_max_length=WINDOW
    )


def text_encoder(words: CLIPTokenizer, width: int, window: int, layers: int = 2) -> CLIPTextModel:
    torch.manual_seed(1)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=window, **ends,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval()
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder


def unet() -> UNet2DConditionModel:
    torch.manual_seed(2)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(80, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return model.eval()


def scheduler() -> PNDMScheduler:
    """SD 1.4's own: 51 denoiser calls for 50 steps."""
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


@pytest.fixture
def pipe() -> Any:
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, sample_size=32,
    ).eval()  # fmt: skip
    words = tokenizer()
    made = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(words, WIDTH, WINDOW), tokenizer=words, unet=unet(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def draw() -> Any:
    """Draws latents (n, 4, 8, 8): one seed a prompt, as the harness does."""

    def run(
        pipe: Any, prompts: list[str], steps: int = 4, seeds: list[int] | None = None, **extra: Any
    ) -> torch.Tensor:
        seeds = seeds or list(range(len(prompts)))
        with torch.inference_mode():
            return pipe(
                prompt=prompts, generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
                num_inference_steps=steps, output_type="latent", **{"guidance_scale": 5.0, **extra},
            ).images  # fmt: skip

    return run


@pytest.fixture
def sd14() -> Any:
    """Builds SD 1.4's UNet without its 3.4 GB: everything on the meta device but the 32 matrices that are edited."""

    class Bare:  # what building needs of a pipeline
        tokenizer: CLIPTokenizer
        text_encoder: CLIPTextModel
        unet: UNet2DConditionModel

    bare = Bare()
    bare.tokenizer = tokenizer()
    bare.tokenizer.model_max_length = 77
    bare.text_encoder = text_encoder(bare.tokenizer, 768, 77, layers=1)
    with torch.device("meta"):
        bare.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    torch.manual_seed(4)
    for name, module in bare.unet.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            module.weight = torch.nn.Parameter(torch.randn(module.weight.shape) * 0.03)
    return bare


@pytest.fixture
def states(pipe: Any) -> Any:
    """Last hidden states (window, width) of a text, as the pipeline itself computes them."""

    def run(text: str) -> np.ndarray:
        with torch.no_grad():
            return pipe.encode_prompt(text, torch.device("cpu"), 1, False)[0][0].double().numpy()

    return run


@pytest.fixture
def by_hand() -> Any:
    """The published edit as its sums, one outer product a token: pairs of key and new embedding, kept keys."""

    def run(weight: np.ndarray, pairs: list, kept: list, lam: float, erase: float, preserve: float) -> np.ndarray:
        left, right = lam * weight, lam * np.eye(weight.shape[1])
        for key, new in pairs:
            left = left + erase * np.outer(weight @ new, key)
            right = right + erase * np.outer(key, key)
        for key in kept:
            left = left + preserve * np.outer(weight @ key, key)
            right = right + preserve * np.outer(key, key)
        return left @ np.linalg.inv(right)

    return run


@pytest.fixture
def roomy(pipe: Any) -> Any:
    """The pipeline with a window of 256: its tokenizer spells words out that SD 1.4's knows whole."""
    pipe.tokenizer.model_max_length = 256
    pipe.text_encoder = text_encoder(pipe.tokenizer, WIDTH, 256)
    return pipe
