"""What trained defenses share, against the libraries' own: noise, guidance, samplers, attention, LoRA, images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from harness.defenses.base import BuildContext, BuildStep
from harness.defenses.training import attention, data, loop, lora, losses
from harness.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def velocity(pipe: Any) -> Any:
    """The pipeline with the shapes world's kind of scheduler: velocity, no signal left at the last timestep."""
    pipe.scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    return pipe


@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_targets_undo_what_noising_did(pipe: Any, velocity: Any, kind: str) -> None:
    if kind == "noise":
        velocity.scheduler.register_to_config(prediction_type="epsilon")
    process = losses.NoiseProcess(velocity)
    clean, noise = process.noise((3, 4, 8, 8), generator(1)), process.noise((3, 4, 8, 8), generator(2))
    timesteps = torch.tensor([0, 400, 999])
    noised, target = process.noised(clean, noise, timesteps), process.target(clean, noise, timesteps)
    keep = process.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if kind == "noise":
        assert torch.equal(target, noise)
        assert torch.allclose(keep.sqrt() * clean, noised - (1 - keep).sqrt() * target, atol=1e-5)
    else:  # Salimans and Ho 2022: x = sqrt(a) z - sqrt(1 - a) v
        assert torch.allclose(clean, keep.sqrt() * noised - (1 - keep).sqrt() * target, atol=1e-5)
        assert float(keep[-1]) == pytest.approx(0, abs=1e-6)
    assert 0 <= process.random_timesteps(500, generator()).min() < 20


def test_a_denoiser_of_another_kind_is_refused(velocity: Any) -> None:
    velocity.scheduler.register_to_config(prediction_type="sample")
    process = losses.NoiseProcess(velocity)
    with pytest.raises(UserError, match="predicts 'sample'"):
        process.target(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.tensor([5]))


def test_guidance_in_one_call_is_that_of_two(pipe: Any) -> None:
    states = losses.text_states(pipe, ["star", ""], "art")
    latents, timesteps = torch.randn(3, 4, 8, 8, generator=generator()), torch.tensor([10, 500, 900])
    with torch.no_grad():
        with_text, without = (losses.predict(pipe.unet, latents, timesteps, s[None]) for s in states)
        at_once = losses.guided(pipe.unet, latents, timesteps, states[:1], states[1:], 3.0)
    assert torch.allclose(at_once, without + 3 * (with_text - without), atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_predictions_are_float32_whatever_the_denoiser(pipe: Any, half: bool) -> None:
    pipe.unet.to(torch.bfloat16 if half else torch.float32)
    states = losses.text_states(pipe, ["star"], "art")
    with torch.no_grad():
        prediction = losses.predict(pipe.unet, torch.zeros(2, 4, 8, 8), torch.tensor([5, 5]), states)
    assert prediction.dtype == torch.float32
    assert prediction.shape == (2, 4, 8, 8)


@pytest.mark.parametrize("kind", ["own", "ddim", "euler"])
def test_partly_denoised_latents_lie_on_the_pipelines_own_path(pipe: Any, kind: str) -> None:
    """The pipeline's latents after each step are those that are made here from the same noise."""
    if kind != "own":
        cls = DDIMScheduler if kind == "ddim" else EulerDiscreteScheduler
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
    steps, seen = 5, []

    def keep(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict:
        seen.append(kwargs["latents"].clone())
        return {}

    with torch.no_grad():
        pipe(
            "star", generator=generator(7), num_inference_steps=steps, guidance_scale=3.0, output_type="latent",
            callback_on_step_end=keep,
        )  # fmt: skip
    walker = losses.sampler(pipe, type(pipe.scheduler), steps)
    states = losses.text_states(pipe, ["star", ""], "art")
    noise = torch.randn(1, 4, 8, 8, generator=generator(7))
    for stop in range(1, len(walker.timesteps)):
        made = losses.partly_denoised(pipe.unet, walker, noise, stop, (states[:1], states[1:]), 3.0)
        expected = seen[stop - 1]
        if kind == "euler":
            sigma = walker.sigmas[stop]
            expected = expected / (sigma**2 + 1).sqrt()
        assert torch.allclose(made.latents, expected, atol=1e-4), stop
        assert made.timestep == int(walker.timesteps[stop])
    start = losses.partly_denoised(pipe.unet, walker, noise, 0, (states[:1], states[1:]), 3.0)
    assert float(start.latents.std()) == pytest.approx(float(noise.std()), rel=0.1)


def test_a_batch_is_denoised_as_each_latent_alone(pipe: Any) -> None:
    walker = losses.sampler(pipe, DDIMScheduler, 4)
    states = losses.text_states(pipe, ["star", ""], "art")
    noise = torch.randn(3, 4, 8, 8, generator=generator())
    pair = (states[:1], states[1:])
    together = losses.partly_denoised(pipe.unet, walker, noise, 3, pair, 3.0).latents
    alone = [losses.partly_denoised(pipe.unet, walker, n[None], 3, pair, 3.0).latents for n in noise]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert float(together.abs().max()) > 1  # nothing was cut as pixels would be


def test_recorded_maps_are_probabilities_and_change_no_prediction(pipe: Any) -> None:
    states, latents = losses.text_states(pipe, ["star"], "art"), torch.randn(2, 4, 8, 8, generator=generator())
    timesteps = torch.tensor([300, 300])
    before = losses.predict(pipe.unet, latents, timesteps, states)
    processors = {n: m.processor for n, m in attention.cross_attentions(pipe.unet).items()}
    with attention.recorded_attention(pipe.unet) as maps:
        during = losses.predict(pipe.unet, latents, timesteps, states)
    assert torch.allclose(before, during, atol=1e-5)
    assert {n: m.processor for n, m in attention.cross_attentions(pipe.unet).items()} == processors
    assert len(maps) == 7
    for name, map_ in maps.items():
        heads = pipe.unet.get_submodule(name).heads
        assert map_.shape[:2] == (2, heads)
        assert map_.shape[2] in (64, 16)
        assert map_.shape[3] == states.shape[1]
        assert torch.allclose(map_.sum(-1), torch.ones(map_.shape[:3]), atol=1e-5)
        assert map_.requires_grad


def test_a_recorded_map_is_the_softmax_of_queries_and_keys(pipe: Any) -> None:
    name, module = next(iter(attention.cross_attentions(pipe.unet).items()))
    kept: dict[str, torch.Tensor] = {}
    module.to_q.register_forward_hook(lambda m, i, o: kept.update(q=o))
    module.to_k.register_forward_hook(lambda m, i, o: kept.update(k=o))
    states = losses.text_states(pipe, ["star"], "art")
    with attention.recorded_attention(pipe.unet) as maps, torch.no_grad():
        losses.predict(pipe.unet, torch.ones(1, 4, 8, 8), torch.tensor([300]), states)
    query, key = (kept[n][0].unflatten(-1, (module.heads, -1)).transpose(0, 1).double() for n in "qk")
    expected = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    assert torch.allclose(maps[name][0].double(), expected, atol=1e-5)


def test_the_start_tokens_key_and_value_get_no_gradient_and_keep_their_value(pipe: Any) -> None:
    states = losses.text_states(pipe, ["star"], "art")
    latents, timesteps = torch.randn(1, 4, 8, 8, generator=generator()), torch.tensor([300])
    plain = losses.predict(pipe.unet, latents, timesteps, states)
    module = next(iter(attention.cross_attentions(pipe.unet).values()))
    with attention.detached_start(pipe.unet):
        inside = losses.predict(pipe.unet, latents, timesteps, states)
        later = module.to_k(states)
    assert torch.equal(plain, inside)
    gradient = torch.autograd.grad(later.sum(), module.to_k.weight)[0]
    expected = states[0, 1:].sum(0).expand_as(gradient)  # of every token but the first
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    outside = torch.autograd.grad(module.to_k(states).sum(), module.to_k.weight)[0]
    assert torch.allclose(outside, states[0].sum(0).expand_as(outside), rtol=1e-4, atol=1e-4)


def test_lora_changes_nothing_at_first_and_afterwards_what_its_factors_say(pipe: Any) -> None:
    states, latents = losses.text_states(pipe, ["star"], "art"), torch.ones(1, 4, 8, 8)
    student = loop.student_of(pipe.unet)
    factors = lora.add_lora(student, r".*\.attn2\.to_[kv]", rank=2, alpha=4.0, seed=1)
    timesteps = torch.tensor([300])
    with torch.no_grad():
        assert torch.equal(
            losses.predict(student, latents, timesteps, states), losses.predict(pipe.unet, latents, timesteps, states)
        )
        for factor in factors.values():
            factor.add_(0.01 * torch.randn(factor.shape, generator=generator()))
    changes = lora.lora_changes(student)
    assert len(changes) == 14
    assert {p for p in student.parameters() if p.requires_grad} == set(factors.values())
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    name = key.removesuffix(".weight")
    down, up = (factors[f"{name}.lora_{side}.default.weight"] for side in "AB")
    assert torch.allclose(changes[key], 4.0 / 2 * (up @ down), atol=1e-6)
    merged = loop.student_of(pipe.unet)
    merged.load_state_dict({k: v + changes[k] if k in changes else v for k, v in merged.state_dict().items()})
    with torch.no_grad():
        one, other = (losses.predict(u, latents, timesteps, states) for u in (student, merged))
    assert torch.allclose(one, other, atol=1e-4)


def test_lora_starts_alike_for_one_seed(pipe: Any) -> None:
    starts = []
    for seed, ambient in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(ambient)
        factors = lora.add_lora(loop.student_of(pipe.unet), r".*\.attn2\.to_k", rank=1, alpha=1.0, seed=seed)
        starts.append(next(iter(factors.values())).detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def _painter(asked: list[tuple[str, int]]) -> Any:
    def draw(texts: Any, seeds: Any) -> list[Image.Image]:
        asked.extend(zip(texts, seeds, strict=True))
        return [Image.fromarray(np.full((32, 32, 3), seed % 256, dtype=np.uint8)) for seed in seeds]

    return draw


def test_training_images_are_drawn_once_in_order_and_told(tmp_path: Path, pipe: Any) -> None:
    asked: list[tuple[str, int]] = []
    told: list[BuildStep] = []
    context = BuildContext(folder=tmp_path, report=told.append, draw=_painter(asked))
    texts, seeds = [f"star {'i' * (i % 3)}" for i in range(20)], list(range(20))
    first = data.latents(pipe, context, "forget", texts, seeds, "art")
    assert asked == list(zip(texts, seeds, strict=True))
    assert [s[:3] for s in told] == [("draw forget", 16, 20), ("draw forget", 20, 20)]
    (tmp_path / "forget-16.safetensors").unlink()  # as if it had been stopped there
    again = data.latents(pipe, context, "forget", texts, seeds, "art")
    assert len(asked) == 24
    assert torch.equal(first, again)
    alone = data.latents(pipe, BuildContext(draw=_painter([])), "forget", texts[3:4], seeds[3:4], "art")
    assert torch.allclose(first[3], alone[0], atol=1e-5)


def test_latents_are_the_scaled_mean_of_the_autoencoders_posterior(pipe: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = pipe.vae.encode(2 * pixels - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(data.encode_images(pipe, [image]), expected, atol=1e-5)


def test_images_that_nobody_draws_or_the_guard_refuses_are_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match="harness build"):
        data.latents(pipe, BuildContext(), "x", ["star"], [0], "art")
    with pytest.raises(UserError, match="may not be built from"):
        data.latents(pipe, BuildContext(draw=_painter([])), "x", ["a child"], [0], "nudity")
