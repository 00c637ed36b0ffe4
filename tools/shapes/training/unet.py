"""Train the world's denoiser on cached latents, conditioned on CLIP's frozen text tower.

    python -m tools.shapes.training.unet --work DIR --out harness/shapes/weights

Needs ``clip/`` and ``sd/vae/`` in ``--out``. v-prediction (Salimans and Ho 2022) on a scaled-linear
schedule with zero terminal SNR (Lin et al. 2024); one caption in ten is empty, for guidance. A second
leg adds bare names, half of them of what is not in the image, as alt texts of the web have them: what
a method steers away from (SLD, negative prompts) is a bare name too, and a denoiser that never met one
answers it with one lonely object, away from which lies a broken image. Where a name may be wrong, it
tells little once the image has settled, as it should.
Writes the whole StableDiffusionPipeline folder ``sd/``.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from harness.shapes import world
from tools.shapes.training.loop import Plan, pixels, train

SCENES = 60_000  # cached; every step draws new captions for them
BATCH = 64
EMPTY_SHARE = 0.1
# From this step on, noise levels are drawn with a density that grows with the noise: the first steps learn what
# things look like, the rest where the text says that they stand, which is decided while nearly all is noise.
LAYOUT_FROM = 2_000
PLAN = Plan(name="unet", steps=7_500, lr=1.2e-3, betas=(0.9, 0.99), hold=0.4, warmup=200, ema=0.999, save_every=250)
NAMES = Plan(name="unet-names", steps=1_500, lr=8e-4, betas=(0.9, 0.99), hold=0.5, warmup=50, ema=0.99, save_every=250)
NAME_SHARE = 0.2  # of the second leg's captions: bare names
STRAY_SHARE = 0.5  # of the bare names: another image's


def build(text_width: int) -> UNet2DConditionModel:
    """Two levels (8 x 8, 4 x 4), cross-attention at both: 7 genuine ``attn2`` layers."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=world.SIZE // 4,
        block_out_channels=(80, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's own text tower as the pipeline's text encoder (strict: every tensor must match)."""
    tower = CLIPTextModel(clip.config.text_config)
    state = clip.text_model.state_dict()
    nested = any(k.startswith("text_model.") for k in tower.state_dict())
    tower.load_state_dict({f"text_model.{k}" if nested else k: v for k, v in state.items()}, strict=True)
    return tower.eval()


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, work: Path) -> tuple[list[world.Scene], Tensor]:
    """SCENES scenes and their scaled latents (SCENES, 4, 8, 8), kept in ``work``."""
    rng = random.Random("latents")
    scenes = [world.sample_scene(rng) for _ in range(SCENES)]
    path = work / "latents.pt"
    if not path.exists():
        chunks = []
        for start in range(0, SCENES, 500):
            x = pixels([world.render(s, random.Random(start + i)) for i, s in enumerate(scenes[start : start + 500])])
            chunks.append(vae.encode(x).latent_dist.mode() * vae.config.scaling_factor)
        torch.save(torch.cat(chunks), path)
    return scenes, torch.load(path, weights_only=True)


def described(scene: world.Scene, other: world.Scene, rng: random.Random, name_share: float) -> str:
    """What is said of ``scene``: its caption, nothing, or a bare name, which may be one of ``other``'s."""
    drawn = rng.random()
    if drawn < EMPTY_SHARE:
        return ""
    if drawn < EMPTY_SHARE + name_share:
        return world.bare_name(other if rng.random() < STRAY_SHARE else scene, rng)
    return world.caption(scene, rng)


class Objective:
    """The v-prediction loss of one batch of random scenes, ``name_share`` of them told by a bare name."""

    def __init__(self, unet: UNet2DConditionModel, tower: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.unet, self.tower, self.tokenizer = unet, tower, tokenizer
        self.scheduler = scheduler()

    def encode(self, captions: list[str]) -> Tensor:
        """Last hidden states (B, window, width), as the pipeline computes them."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states: Tensor = self.tower(ids).last_hidden_state
        return states

    def __call__(
        self, step: int, scenes: list[world.Scene], latents: Tensor, rng: random.Random, name_share: float
    ) -> Tensor:
        picked = [rng.randrange(len(scenes)) for _ in range(BATCH)]
        captions = [described(scenes[i], rng.choice(scenes), rng, name_share) for i in picked]
        x = latents[picked].contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(x)
        uniform = not name_share and step < LAYOUT_FROM
        t = torch.randint(0, 1000, (BATCH,)) if uniform else (1000 * torch.rand(BATCH).sqrt()).long()
        noisy = self.scheduler.add_noise(x, noise, t)
        predicted = self.unet(noisy, t, encoder_hidden_states=self.encode(captions)).sample
        return functional.mse_loss(predicted, self.scheduler.get_velocity(x, noise, t))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from here")
    parser.add_argument("--out", type=Path, required=True, help="holds clip/ and sd/vae/; sd/ is written here")
    args = parser.parse_args()
    clip = CLIPModel.from_pretrained(args.out / "clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.out / "clip")
    vae = AutoencoderKL.from_pretrained(args.out / "sd" / "vae", torch_dtype=torch.float32).eval()
    tower = text_tower(clip)
    scenes, latents = cache_latents(vae, args.work)
    unet = build(clip.config.text_config.hidden_size).to(memory_format=torch.channels_last)
    objective = Objective(unet, tower, tokenizer)
    groups = [{"params": list(unet.parameters())}]
    train(PLAN, unet, groups, lambda step, rng: objective(step, scenes, latents, rng, 0.0), args.work)
    train(NAMES, unet, groups, lambda step, rng: objective(step, scenes, latents, rng, NAME_SHARE), args.work)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(args.out / "sd")


if __name__ == "__main__":
    main()
