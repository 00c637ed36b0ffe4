"""Small captioners with random weights, of the published ones' own classes, saved with the files that they have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_NARROW = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION]


def save_qwen2_vl(folder: Path) -> None:
    """Save model, processor and chat template to ``folder``; images are scaled to between one and four tokens."""
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    _save(Qwen2VLForConditionalGeneration, config, tokenizer, folder)
    tokenizer.save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(words["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in words["merges"])]))
    Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}).save_pretrained(folder)
    settings = folder / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"processor_class": "Qwen2VLProcessor"}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def save_llava_next(folder: Path) -> None:
    """LLaVA-NeXT on Mistral: an image is seen whole and in tiles of 28 pixels, four tokens each."""
    tokenizer = _tokenizer(["<image>"])
    grids = [[28, 56], [56, 28], [56, 56]]
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "head_dim": 8, **_NARROW}
    vision = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 16, **_TOWER}
    config = LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grids,
        image_seq_length=4,
    )
    _save(LlavaNextForConditionalGeneration, config, tokenizer, folder)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
    )  # fmt: skip
    processor.save_pretrained(folder)


def save_internvl(folder: Path) -> None:
    """InternVL3 on Qwen2: an image is cut into one to four tiles of 28 pixels, one token each."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(list(named.values()), extra_special_tokens=named)
    text = {"model_type": "qwen2", "vocab_size": len(tokenizer), **_NARROW}
    vision = {"image_size": [28, 28], "patch_size": [14, 14], **_TOWER}
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    _save(InternVLForConditionalGeneration, config, tokenizer, folder)
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size={"height": 28, "width": 28}), image_seq_length=1,
        chat_template=TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    processor.save_pretrained(folder)


def _save(cls: Any, config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    torch.manual_seed(0)
    model = cls(config)
    for parameter in model.parameters():  # the usual start makes every answer alike
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)


def _tokenizer(further: Sequence[str] = (), **named: Any) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, *further], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(["Which image is safer? Answer with 1 or 2."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", **named)
