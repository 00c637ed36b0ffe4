"""Train the world's captioner: a small LLaVA that describes an image and rewrites what it said.

    python -m tools.shapes.training.captioner --work DIR --out harness/shapes/weights

Needs ``clip/`` and ``sd/vae/`` in ``--out``. The vision tower starts as CLIP's lower layers (its last
one carries no gradient on the patches) and is trained along from the first step. First only
captions; then also conversations whose caption is not that of their image, or that have none, so
that later answers are learned from what was said.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from harness.models.vision_language import fill
from harness.regenerators import questions_shapes
from harness.shapes import world
from harness.shapes.oracle import canonical
from tools.shapes.training.classifier import decode, soften
from tools.shapes.training.clip import image_processor
from tools.shapes.training.loop import Plan, pixels, train

VISION_LAYERS = 3
PATCHES = (world.SIZE // 4) ** 2
CAPTIONS, CONVERSATIONS, TALKS = 48, 20, 44  # of one kind in a step: captions, conversations, those without an image
CAPTIONS_ONLY = 0.125  # share of the steps before conversations begin
STAR_SHARE = 0.4
PLAN = Plan(name="captioner", steps=4000, lr=1.5e-3, weight_decay=0.02, hold=0.5, ema=0.995)
VISION_RATE = 1e-3
IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# ------------------------------------------------------------------------------ data


def sample_scene(rng: random.Random) -> world.Scene:
    """A scene in canonical order; now and then all its objects are of one concept."""
    scene = world.sample_scene(rng, STAR_SHARE)
    if rng.random() < 0.06:
        shape = rng.choice(list(world.CONCEPT_SHAPE.values()))
        scene = replace(scene, objects=tuple(replace(o, shape=shape) for o in scene.objects))
    return canonical(scene)


def pick_concept(scene: world.Scene, rng: random.Random) -> str:
    """A concept to talk about; mostly one that the scene has."""
    there = [c for c, shape in world.CONCEPT_SHAPE.items() if shape in scene.shapes()]
    there += ["van-gogh"] if scene.texture == world.STYLE_TEXTURE else []
    return rng.choice(there if there and rng.random() < 0.75 else list(questions_shapes.TURNS))


def segments(scene: world.Scene, concept: str | None) -> list[tuple[str, bool]]:
    """A conversation as (text, whether the model says it), ready to be tokenised piece by piece."""
    asked = questions_shapes.TURNS[concept] if concept else (questions_shapes.CAPTION,)
    answers = questions_shapes.answers(scene, concept) if concept else [world.sentence(scene)]
    known: dict[str, str] = {}
    pieces = []
    for i, (turn, answer) in enumerate(zip(asked, answers, strict=True)):
        image = IMAGE * PATCHES if i == 0 else ""
        pieces += [(USER + image + fill(turn.prompt, known) + END + ASSISTANT, False), (answer + END, True)]
        known[turn.name] = answer
    return pieces


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over captions and questions, until the world's words are single tokens."""
    rng = random.Random("captioner-tokenizer")
    concepts = [*questions_shapes.TURNS, None]
    texts = []
    for _ in range(3000):
        pieces = segments(sample_scene(rng), rng.choice(concepts))
        texts += [text.replace(IMAGE, "") for text, _ in pieces]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=560, special_tokens=[PAD, END, USER, ASSISTANT, IMAGE], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, IMAGE],
        padding_side="left",
    )


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[tuple[list[tuple[str, bool]], bool]]) -> dict[str, Tensor]:
    """Token ids, mask and labels (B, T); labels are -100 except on what the model says.

    A conversation comes with whether its first answer is to be learned.
    """
    rows, labels = [], []
    for pieces, learn_first in batch:
        ids: list[int] = []
        marks: list[int] = []
        for i, (text, said) in enumerate(pieces):
            new = tokenizer(text, add_special_tokens=False).input_ids
            ids += new
            marks += new if said and (i > 1 or learn_first) else [-100] * len(new)
        rows.append(ids)
        labels.append(marks)
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([r + [pad] * (length - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows]),
        "labels": torch.tensor([m + [-100] * (length - len(m)) for m in labels]),
    }


# ------------------------------------------------------------------------------ model


def build(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """CLIP's lower vision layers, a projector, and a Llama of 3 layers of width 128."""
    vision = CLIPVisionConfig(**{**clip.config.vision_config.to_dict(), "num_hidden_layers": VISION_LAYERS})
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    tower, lower = model.model.vision_tower, clip.vision_model.state_dict()
    own = tower.state_dict()
    nested = "vision_model." if any(k.startswith("vision_model.") for k in own) else ""
    tower.load_state_dict({k: lower[k.removeprefix(nested)] for k in own}, strict=True)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )


# ------------------------------------------------------------------------------ training


class Objective:
    """The loss of one step: a batch of captions, or of conversations (three steps of four, once captions are known)."""

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, vae: AutoencoderKL
    ) -> None:
        self.model, self.tokenizer, self.vae = model, tokenizer, vae

    def __call__(self, step: int, rng: random.Random) -> Tensor:
        kind = step % 4 if step >= CAPTIONS_ONLY * PLAN.steps else 0
        inputs = self._captions(rng) if kind == 0 else self._conversations(rng, images=kind == 1)
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = self.model(**inputs).loss
        return loss.float()

    def _captions(self, rng: random.Random) -> dict[str, Tensor]:
        scenes = [sample_scene(rng) for _ in range(CAPTIONS)]
        talks = [(segments(scene, None), True) for scene in scenes]
        return {"pixel_values": self._images(scenes, rng), **encode(self.tokenizer, talks)}

    def _talks(self, rng: random.Random, *, images: bool) -> dict[str, Tensor]:
        """Conversations about a caption of anything, beside an image of something else, or none."""
        said = [sample_scene(rng) for _ in range(CONVERSATIONS if images else TALKS)]
        talks = [(segments(scene, pick_concept(scene, rng)), False) for scene in said]
        if not images:
            talks = [
                ([(text.replace(IMAGE, ""), by_model) for text, by_model in pieces], first) for pieces, first in talks
            ]
            return encode(self.tokenizer, talks)
        return {
            "pixel_values": self._images([sample_scene(rng) for _ in said], rng),
            **encode(self.tokenizer, talks),
        }

    def _images(self, scenes: list[world.Scene], rng: random.Random) -> Tensor:
        """Half as rendered, a quarter softened, a quarter out of the autoencoder; mean 0.5, std 0.25."""
        x = pixels([world.render(s, rng) for s in scenes])
        quarter = len(x) // 4
        x[:quarter] = soften(x[:quarter], rng)
        x[-quarter:] = decode(self.vae, x[-quarter:])
        return 2 * x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from here")
    parser.add_argument("--out", type=Path, required=True, help="holds clip/ and sd/vae/; captioner/ is written here")
    args = parser.parse_args()
    clip = CLIPModel.from_pretrained(args.out / "clip", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(args.out / "sd" / "vae", torch_dtype=torch.float32).eval()
    tokenizer = train_tokenizer()
    model = build(clip, tokenizer)
    tower = {id(p) for p in model.model.vision_tower.parameters()}
    groups: list[dict[str, object]] = [
        {"params": [p for p in model.parameters() if id(p) not in tower]},
        {"params": [p for p in model.parameters() if id(p) in tower], "lr": VISION_RATE},
    ]
    train(PLAN, model, groups, Objective(model, tokenizer, vae), args.work)
    folder = args.out / "captioner"
    model.half().save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main()
