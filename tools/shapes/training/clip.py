"""Train the world's CLIP (and its tokenizer): symmetric InfoNCE with hard-negative captions.

    python -m tools.shapes.training.clip --work DIR --out harness/shapes/weights

Radford et al. 2021 (loss); the hard negatives (one attribute changed, colours swapped, relation
flipped, object dropped) are what makes the text feature bind colour to shape.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from harness.shapes import world
from tools.shapes.training.loop import Plan, pixels, train

WINDOW = 24  # tokens, start and end included
BATCH = 96
PLAN = Plan(name="clip", steps=2600, lr=1.2e-3, weight_decay=0.05, hold=0.1)
# Few captions of the first leg turn on where things stand; in the second, most scenes with two objects do.
RELATIONS = Plan(name="clip-relations", steps=2000, lr=8e-4, weight_decay=0.05, hold=0.3)
RELATION_SHARE = 0.6


def train_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE over the world's words; each common word is one token, slips are fragments."""
    words = {w for ws in world.SHAPE_WORDS.values() for w in ws} | {*world.COLOURS, *world.BACKGROUNDS, *world.TEXTURES}
    words |= {*world.FILLERS, "a", "on", "left", "right", "above", "below", "background"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    # The merges: ask for ever more until every word is one token.
    for size in range(len(alphabet) * 2 + 40, 1400, 20):
        trainer = trainers.BpeTrainer(
            vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
        )
        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        bpe.pre_tokenizer = pre_tokenizers.Whitespace()
        bpe.train_from_iterator([" ".join(sorted(words))] * 50, trainer)
        if all(len(bpe.encode(w).tokens) == 1 for w in words):
            break
    merges = [tuple(m) for m in _merges(bpe)]
    vocab = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges)]
    vocab = [*dict.fromkeys(vocab), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(vocab)}, merges=merges, model_max_length=WINDOW)


def _merges(bpe: Tokenizer) -> list[list[str]]:
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [m if isinstance(m, list) else m.split(" ") for m in merges]


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIPModel of the real class: 3 text layers, 4 vision layers, width 128."""
    shared = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            **shared,
            **ends,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": WINDOW,
        },
        vision_config={**shared, "num_hidden_layers": 4, "image_size": world.SIZE, "patch_size": 4},
        projection_dim=128,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.1)
    return model


def image_processor() -> CLIPImageProcessor:
    side = world.SIZE
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )


def described(scene: world.Scene, rng: random.Random, relation_share: float) -> tuple[str, str]:
    """A caption of ``scene`` and one that is almost right; a share of them differ in the relation alone."""
    if len(scene.objects) == 2 and rng.random() < relation_share:
        other = replace(scene, relation=rng.choice([r for r in world.RELATIONS if r != scene.relation]))
        wording = rng.getrandbits(32)
        return world.sentence(scene, random.Random(wording)), world.sentence(other, random.Random(wording))
    return world.caption(scene, rng), world.caption(world.hard_negative(scene, rng), rng)


def loss(model: CLIPModel, tokenizer: CLIPTokenizer, rng: random.Random, relation_share: float) -> Tensor:
    """InfoNCE over a batch; each image also has one caption that is almost right."""
    scenes = [world.sample_scene(rng) for _ in range(BATCH)]
    pairs = [described(s, rng, relation_share) for s in scenes]
    captions = [right for right, _ in pairs] + [wrong for _, wrong in pairs]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    images = 2 * pixels([world.render(s, rng) for s in scenes])  # mean 0.5, std 0.25
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=ids, pixel_values=images)
    text = functional.normalize(out.text_embeds.float(), dim=-1)
    image = functional.normalize(out.image_embeds.float(), dim=-1)
    scale = model.logit_scale.exp().clamp(max=60)
    true, wrong = text[:BATCH], text[BATCH:]
    logits = scale * image @ true.T
    same = torch.tensor([[i != j and a == b for j, b in enumerate(scenes)] for i, a in enumerate(scenes)])
    logits = logits.masked_fill(same, -1e4)
    hard = scale * (image * wrong).sum(-1, keepdim=True)
    target = torch.arange(BATCH)
    return functional.cross_entropy(torch.cat([logits, hard], 1), target) + functional.cross_entropy(logits.T, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from here")
    parser.add_argument("--out", type=Path, required=True, help="where clip/ is written")
    args = parser.parse_args()
    tokenizer = train_tokenizer()
    model = build(tokenizer)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    train(PLAN, model, groups, lambda _, rng: loss(model, tokenizer, rng, 0.0), args.work)
    train(RELATIONS, model, groups, lambda _, rng: loss(model, tokenizer, rng, RELATION_SHARE), args.work)
    folder = args.out / "clip"
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)


if __name__ == "__main__":
    main()
