"""Train the world's autoencoder: 32 x 32 images to 8 x 8 x 4 latents.

    python -m tools.shapes.training.vae --work DIR --out harness/shapes/weights

L1 + MSE + a small KL term (Rombach et al. 2022, without the adversarial part).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from harness.shapes import world
from tools.shapes.training.loop import Plan, pixels, train

BATCH = 32
KL_WEIGHT = 2e-4
PLAN = Plan(name="vae", steps=3000, lr=1.5e-3, hold=0.3, betas=(0.9, 0.99))


def build() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=12,
        mid_block_add_attention=False,
        sample_size=world.SIZE,
    )


def images(rng: random.Random, count: int) -> Tensor:
    return pixels([world.render(world.sample_scene(rng), rng) for _ in range(count)])


def loss(vae: AutoencoderKL, rng: random.Random) -> Tensor:
    x = images(rng, BATCH)
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    value: Tensor = (y - x).abs().mean() + (y - x).pow(2).mean() + KL_WEIGHT * posterior.kl().mean() / 4
    return value


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL) -> float:
    """1 / standard deviation of the latents, over 1,024 images."""
    latents = vae.encode(images(random.Random("scaling"), 1024)).latent_dist.mode()
    return float(round(1 / latents.std().item(), 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from here")
    parser.add_argument("--out", type=Path, required=True, help="where vae/ is written")
    args = parser.parse_args()
    vae = build().to(memory_format=torch.channels_last)
    train(PLAN, vae, [{"params": list(vae.parameters())}], lambda _, rng: loss(vae, rng), args.work)
    vae.register_to_config(scaling_factor=scaling_factor(vae))
    vae.half().save_pretrained(args.out / "sd" / "vae")


if __name__ == "__main__":
    main()
