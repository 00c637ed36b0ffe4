"""Train the world's classifier: which shapes, coloured shapes, textures and backgrounds an image shows.

    python -m tools.shapes.training.classifier --work DIR --out harness/shapes/weights

A ``ResNetForImageClassification`` with one sigmoid a label. Needs ``sd/vae/`` in ``--out``: part of
each batch is blurred, noisy, or comes out of the autoencoder with noise on its latents, so that
generated images are in distribution.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from harness.shapes import world
from tools.shapes.training.clip import image_processor
from tools.shapes.training.loop import Plan, pixels, train

BATCH = 96
DECODED = 20  # images of a batch that pass through the autoencoder
SOFTENED = 28  # images of a batch that are blurred and get noise
PLAN = Plan(name="classifier", steps=2400, lr=3e-3, weight_decay=0.02, hold=0.1)
LABELS = (
    *world.SHAPES,
    *world.TEXTURES,
    *world.BACKGROUNDS,
    *(f"{colour} {shape}" for shape in world.SHAPES for colour in world.COLOURS),
)


def targets(scenes: list[world.Scene]) -> Tensor:
    """What is true of each scene: (B, len(LABELS)) of 0 and 1."""
    rows = []
    for scene in scenes:
        true = {scene.texture, scene.background} | scene.shapes() | {f"{o.colour} {o.shape}" for o in scene.objects}
        rows.append([float(label in true) for label in LABELS])
    return torch.tensor(rows)


def build() -> ResNetForImageClassification:
    """Basic blocks 24-48-96-128 (0.45 M parameters); 32 pixels become 8, 4, 2, 1."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    return ResNetForImageClassification(config)


def soften(x: Tensor, rng: random.Random) -> Tensor:
    """Blur (sigma 0.3 to 1 pixel, one draw for all) and add noise (to 12 grey levels); x in [-1, 1]."""
    sigma = rng.uniform(0.3, 1.0)
    taps = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    kernel = (taps[:, None] * taps[None, :]).expand(3, 1, 7, 7)
    blurred = functional.conv2d(functional.pad(x, (3, 3, 3, 3), mode="replicate"), kernel, groups=3)
    strength = torch.rand(len(x), 1, 1, 1) * 12 / 127.5
    return (blurred + strength * torch.randn_like(x)).clamp(-1, 1)


@torch.no_grad()
def decode(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """The images as the autoencoder returns them, its latents disturbed by up to 0.35 of their spread."""
    latents = vae.encode(x).latent_dist.mode()
    strength = torch.rand(len(x), 1, 1, 1) * 0.35 / vae.config.scaling_factor
    decoded: Tensor = vae.decode(latents + strength * torch.randn_like(latents)).sample.clamp(-1, 1)
    return decoded


def loss(model: ResNetForImageClassification, vae: AutoencoderKL, rng: random.Random) -> Tensor:
    scenes = [world.sample_scene(rng) for _ in range(BATCH)]
    x = pixels([world.render(s, rng) for s in scenes])
    x[:SOFTENED] = soften(x[:SOFTENED], rng)
    x[-DECODED:] = decode(vae, x[-DECODED:])
    logits = model(2 * x).logits  # mean 0.5, std 0.25
    return functional.binary_cross_entropy_with_logits(logits, targets(scenes)) * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from here")
    parser.add_argument("--out", type=Path, required=True, help="holds sd/vae/; classifier/ is written here")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.out / "sd" / "vae", torch_dtype=torch.float32).eval()
    model = build()
    train(PLAN, model, [{"params": list(model.parameters())}], lambda _, rng: loss(model, vae, rng), args.work)
    folder = args.out / "classifier"
    model.half().save_pretrained(folder)
    image_processor().save_pretrained(folder)


if __name__ == "__main__":
    main()
