"""The paper's models at full size, or narrow for a try, with random weights: all that speed depends on."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.prompt_optimization import Numbers
from harness.cards.places import PACKAGE
from harness.models import architectures
from harness.models.clip import Clip
from harness.models.vision_language import Captioner

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip # noqa: E501
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NARROW_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NARROW: dict[str, dict[str, Any]] = {  # by part: other values of the configuration, for a try on a CPU
    "unet": {
        "block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "cross_attention_dim": 32, "sample_size": 8,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": _NARROW_TEXT,
    "clip": {
        "projection_dim": 16, "text_config": _NARROW_TEXT,
        "vision_config": {**_NARROW_TEXT, "image_size": 224, "patch_size": 32},
    },
    "model": {
        "text_config": {
            **_NARROW_TEXT, "num_key_value_heads": 2, "vocab_size": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    },
}  # fmt: skip


def networks(card: str, device: str, dtype: torch.dtype, narrow: bool) -> dict[str, Any]:
    """The networks of a card's model by the names of its pipeline's parts."""
    torch.manual_seed(0)
    parts = architectures.of_card(card).parts
    return {
        part.name: architectures.build(part, device, **(NARROW[part.name] if narrow else {})).to(dtype)
        for part in parts
    }


def stable_diffusion(device: str, dtype: torch.dtype, narrow: bool) -> Any:
    """SD 1.4's pipeline; its tokenizer is the shapes world's, padded to as many tokens."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(PACKAGE / "shapes/weights/sd/tokenizer")
    words.model_max_length = 77
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        **networks("sd-1-4", device, dtype, narrow),
        tokenizer=words,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(device: str, dtype: torch.dtype, narrow: bool) -> Clip:
    """CLIP ViT-L/14 with words that are numbers."""
    model = networks("paper", device, dtype, narrow)["clip"].requires_grad_(False)
    return Clip(model, Numbers(model.config.text_config.vocab_size), None, micro_batch=1)


def captioner(device: str, dtype: torch.dtype, narrow: bool, micro_batch: int) -> Captioner:
    """Qwen2-VL 7B with a small vocabulary of its own; its answers never end before their length."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, special_tokens=_SPECIAL, initial_alphabet=letters))
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    model = networks("qwen2-vl-7b", device, dtype, narrow)["model"]
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = {"image": "<|image_pad|>", "video": "<|video_pad|>"}.get(name.partition("_")[0])
        token = token or f"<|{name.removesuffix('_token_id')}|>"
        setattr(model.config, name, words.convert_tokens_to_ids(token))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = words.pad_token_id
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56 if narrow else 12_845_056}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessorPil(size=size), words, Qwen2VLVideoProcessor(), chat_template=_TEMPLATE
    )
    return Captioner(model, processor, micro_batch=micro_batch)
