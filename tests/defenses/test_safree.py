"""SAFREE against its equations, computed one prompt, one token, one coefficient at a time, in a loop of its own."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.defenses import safree, subspaces
from harness.errors import UserError

PROMPTS = ["a red star", "blue square ring art"]
# A random text encoder's cosine distances lie near 0.5; so gentle a sigmoid gives last steps between 0 and 5.
PARAMS = {"phrases": ["star", "ring"], "last_step": 5, "midpoint": 5.0, "sharpness": 0.2}


def params(**changes: Any) -> dict[str, Any]:
    return {**PARAMS, **changes}


@pytest.fixture
def defended(pipe: Any, draw: Any) -> Any:
    """Latents under SAFREE; the pipeline is left as it was."""

    def run(settings: dict, prompts: list[str], **how: Any) -> torch.Tensor:
        defense = safree.load(pipe, settings, None)
        defense.attach(pipe)
        try:
            return draw(pipe, prompts, **how, **defense.begin(prompts))
        finally:
            defense.detach(pipe)

    return run


# The equations by hand


def onto(vectors: list[np.ndarray], vector: np.ndarray) -> np.ndarray:
    """The nearest point of a span: least squares, as the projector C (C^T C)^+ C^T is defined."""
    matrix = np.stack(vectors, axis=1)
    return matrix @ np.linalg.lstsq(matrix, vector, rcond=1e-6)[0]


def pooled(pipe: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        states = pipe.text_encoder(torch.tensor([ids])).last_hidden_state[0]
    return states[ids.index(pipe.tokenizer.eos_token_id)].double().numpy()


def by_equations(pipe: Any, settings: dict, prompt: str) -> tuple[torch.Tensor, list[int], int]:
    """Changed embedding (1, window, width), trigger positions and last step of one prompt."""
    embedding = pipe.encode_prompt(prompt, torch.device("cpu"), 1, False)[0]
    states = embedding[0].double().numpy()
    ids = pipe.tokenizer(prompt).input_ids
    concept = [pooled(pipe, pipe.tokenizer(phrase).input_ids) for phrase in settings["phrases"]]
    masked = []
    for place in range(1, len(ids) - 1):
        without = list(ids)
        without[place] = 0
        masked.append(pooled(pipe, without))
    distances = [float(np.linalg.norm(p - onto(concept, p))) for p in masked]
    triggers = []
    for i, distance in enumerate(distances):
        others = [d for j, d in enumerate(distances) if j != i]
        if distance >= (1 + settings.get("alpha", 0.01)) * sum(others) / len(others):
            triggers.append(i + 1)
    changed = []
    for token in states:
        if settings.get("order", "released") == "released":
            inside = onto(masked, token)
            changed.append(inside - onto(concept, inside))
        else:
            outside = token - onto(concept, token)
            changed.append(onto(masked, outside))
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for a, b in zip(states[: len(ids)], changed[: len(ids)], strict=True)
    ]
    beta = 1 - sum(cosines) / len(cosines)
    slope = 2 * settings["sharpness"] * (10 * beta - settings["midpoint"])
    last = round(settings["last_step"] / (1 + math.exp(-slope)))
    made = embedding.clone()
    for place in triggers:
        made[0, place] = torch.tensor(changed[place])
    return made, triggers, last


def by_hand(pipe: Any, settings: dict, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
    """One image at a time, two separate predictions a step."""
    away = ", ".join(settings["phrases"]) if settings.get("negative_prompt", True) else ""
    empty = pipe.encode_prompt(away, torch.device("cpu"), 1, False)[0]
    done = []
    for seed, prompt in enumerate(prompts):
        original = pipe.encode_prompt(prompt, torch.device("cpu"), 1, False)[0]
        changed, _, last = by_equations(pipe, settings, prompt)
        if settings.get("self_validation") is False:
            last = steps + 1
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        pipe.scheduler.set_timesteps(steps)
        latents = latents * pipe.scheduler.init_noise_sigma
        for i, t in enumerate(pipe.scheduler.timesteps):
            text = changed if i <= last else original
            u, c = (pipe.unet(latents, t, x).sample for x in (empty, text))
            latents = pipe.scheduler.step(u + guidance * (c - u), t, latents).prev_sample
        done.append(latents)
    return torch.cat(done)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        params(),
        params(order="paper", negative_prompt=False),
        params(self_validation=False, alpha=0.0),
        params(phrases=["red star", "art", "square"], sharpness=0.6),
    ],
)
def test_pipeline_draws_what_the_equations_say(pipe: Any, draw: Any, defended: Any, settings: dict) -> None:
    got = defended(settings, PROMPTS, steps=7, guidance_scale=5.0)
    expected = by_hand(pipe, settings, PROMPTS, steps=7, guidance=5.0)
    found = [by_equations(pipe, settings, prompt) for prompt in PROMPTS]
    assert all(places for _, places, _ in found)  # tokens are changed, but not all of them
    assert sum(len(places) for _, places, _ in found) < sum(len(pipe.tokenizer(p).input_ids) - 2 for p in PROMPTS)
    negative = ", ".join(settings["phrases"]) if settings.get("negative_prompt", True) else ""
    plain = draw(pipe, PROMPTS, steps=7, guidance_scale=5.0, negative_prompt=[negative] * 2)
    difference = (plain - expected).abs().amax((1, 2, 3))
    assert (difference > 0.01).all()  # the change is felt
    assert ((got - expected).abs().amax((1, 2, 3)) < 1e-2 * difference).all()


@torch.no_grad()
def test_last_steps_of_the_reference_lie_within_the_run(pipe: Any) -> None:
    """Were they all at an end, the test above would not see that they matter."""
    lasts = {by_equations(pipe, params(**c), p)[2] for p in PROMPTS for c in ({}, {"sharpness": 0.6})}
    assert lasts & {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("distance", "last"), [(0.45, 0), (0.5, 2), (0.5333, 5), (0.6, 10)]
)  # worked out from the published sigmoid
def test_self_validation_has_the_published_values_for_nudity(distance: float, last: int) -> None:
    cosine = 1 - distance
    states, changed = torch.tensor([[1.0, 0.0]]), torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])
    assert subspaces.last_step(states, changed, 10, 5.333, 2.5) == last


def test_a_prompt_of_one_token_has_no_trigger_and_one_without_any_nothing_to_change(
    pipe: Any, draw: Any, defended: Any
) -> None:
    for prompts in (["star"], [""]):
        plain = draw(pipe, prompts)
        assert torch.equal(plain, defended(params(negative_prompt=False), prompts))


# State, batches, limits


def test_where_no_token_lies_far_enough_images_are_unchanged_bit_for_bit(pipe: Any, draw: Any, defended: Any) -> None:
    settings = params(alpha=1e6, negative_prompt=False)
    assert torch.equal(draw(pipe, PROMPTS), defended(settings, PROMPTS))


def test_phrases_take_the_empty_prompts_place_in_guidance_as_in_the_released_script(
    pipe: Any, draw: Any, defended: Any
) -> None:
    expected = draw(pipe, PROMPTS, negative_prompt=["star, ring"] * 2)
    assert torch.equal(expected, defended(params(alpha=1e6), PROMPTS))


@pytest.mark.parametrize("rule", ["off", "paper", "released"])
def test_batch_mates_and_place_do_not_matter(pipe: Any, defended: Any, rule: str) -> None:
    settings = params(re_attention=rule, last_step=2)
    first = defended(settings, ["a red star", "blue", "ring"], seeds=[7, 8, 9])[0]
    last = defended(settings, ["square art", "art", "a red star"], seeds=[1, 2, 7])[2]
    assert torch.allclose(first, last, atol=1e-4)


@pytest.mark.parametrize("rule", ["off", "paper"])
def test_every_micro_batch_starts_anew(pipe: Any, draw: Any, rule: str) -> None:
    defense = safree.load(pipe, params(re_attention=rule), None)
    defense.attach(pipe)
    drawn = [draw(pipe, prompts, **defense.begin(prompts)) for prompts in (PROMPTS, ["art", "ring art"], PROMPTS)]
    defense.detach(pipe)
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("rule", ["off", "paper"])
def test_detached_pipeline_draws_as_before_bit_for_bit(pipe: Any, draw: Any, defended: Any, rule: str) -> None:
    before = draw(pipe, PROMPTS)
    assert not torch.equal(before, defended(params(re_attention=rule), PROMPTS))
    assert torch.equal(before, draw(pipe, PROMPTS))
    assert "forward" not in vars(pipe.unet)
    assert not any(block._forward_pre_hooks for block in pipe.unet.up_blocks)


def test_without_guidance_the_prompt_is_changed_all_the_same(pipe: Any, draw: Any, defended: Any) -> None:
    plain = draw(pipe, PROMPTS, guidance_scale=1.0)
    for rule in ("off", "paper"):
        assert not torch.equal(plain, defended(params(re_attention=rule), PROMPTS, guidance_scale=1.0))


# Latent re-attention


def by_sums(safe: np.ndarray, original: np.ndarray, scale: float, rule: str) -> np.ndarray:
    """One channel (height, width): the Fourier sums as they are defined."""
    height, width = safe.shape

    def coefficient(image: np.ndarray, u: int, v: int) -> complex:
        return sum(
            image[y, x] * cmath.exp(-2j * math.pi * (u * y / height + v * x / width))
            for y in range(height)
            for x in range(width)
        )

    made = np.zeros((height, width), dtype=complex)
    for u in range(height):
        for v in range(width):
            ours, theirs = coefficient(safe, u, v), coefficient(original, u, v)
            if u in (0, height - 1) and v in (0, width - 1):
                if rule == "paper":
                    ours = ours * scale if abs(ours) > abs(theirs) else ours
                else:
                    ours = ours if theirs.real > ours.real else complex(scale)
            for y in range(height):
                for x in range(width):
                    made[y, x] += ours * cmath.exp(2j * math.pi * (u * y / height + v * x / width)) / (height * width)
    return made.real


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("scale", [0.2, 0.9])
def test_low_frequencies_stand_back_as_the_sums_say(rule: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    safe, original = rng.normal(size=(2, 3, 6, 4)), rng.normal(size=(2, 3, 6, 4))
    got = subspaces.reattended(torch.tensor(safe), torch.tensor(original), scale, rule)
    expected = [
        [by_sums(s, o, scale, rule) for s, o in zip(*pair, strict=True)] for pair in zip(safe, original, strict=True)
    ]
    assert np.abs(np.array(expected) - safe).max() > 0.05
    assert np.allclose(got.numpy(), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_re_attention_acts_on_the_skip_features_of_the_widest_blocks(pipe: Any, rule: str) -> None:
    """Against hooks on the layers themselves, for this UNet's widths: 128 before its first three joints, 80 before
    the last one."""
    joints = [(0, 0, 128, 0.9), (0, 1, 128, 0.9), (1, 0, 128, 0.9), (1, 1, 80, 0.2)]
    latents, texts = torch.randn(1, 4, 8, 8), [pipe.encode_prompt(PROMPTS[1], torch.device("cpu"), 1, False)[0]]
    settings = params(re_attention=rule, self_validation=False, negative_prompt=False)
    texts.append(by_equations(pipe, settings, PROMPTS[1])[0])

    def hook(before: int, scale: float) -> Any:
        def weaken(layer: Any, args: tuple[Any, ...]) -> Any:
            joined = args[0].clone()
            joined[:1, before:] = subspaces.reattended(joined[:1, before:], joined[1:, before:], scale, rule)
            return joined, *args[1:]

        return weaken

    hooks = [
        pipe.unet.up_blocks[block].resnets[layer].register_forward_pre_hook(hook(before, scale))
        for block, layer, before, scale in joints
    ]
    expected = pipe.unet(torch.cat([latents] * 2), 500, torch.cat(texts[::-1])).sample[:1]
    for made in hooks:
        made.remove()
    without = pipe.unet(latents, 500, texts[1]).sample
    defense = safree.load(pipe, settings, None)
    defense.attach(pipe)
    defense.begin(PROMPTS[1:])
    got = pipe.unet(latents, 500, texts[0]).sample
    defense.detach(pipe)
    assert (expected - without).abs().max() > 1e-3
    assert torch.allclose(got, expected, atol=1e-5)


def test_re_attention_that_scales_by_one_changes_nothing(defended: Any) -> None:
    without = defended(params(), PROMPTS)
    neutral = defended(params(re_attention="paper", skip_scales=[1.0, 1.0]), PROMPTS)
    assert torch.allclose(without, neutral, atol=1e-4)
    assert not torch.allclose(without, defended(params(re_attention="paper"), PROMPTS), atol=1e-3)


# Algebra


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_projection_is_the_textbooks(rank: int) -> None:
    rng = np.random.default_rng(rank)
    spanning, vectors = rng.normal(size=(rank, 8)), rng.normal(size=(5, 8))
    repeated = np.concatenate([spanning, spanning[:1] * 2])  # adds nothing to the span
    got = subspaces.along(torch.tensor(vectors), subspaces.basis(torch.tensor(repeated)))
    expected = vectors @ np.linalg.pinv(spanning) @ spanning
    assert np.allclose(got.numpy(), expected, atol=1e-12)


def test_directions_within_an_encoders_rounding_are_none() -> None:
    vector = torch.randn(16)
    assert len(subspaces.basis(torch.stack([vector, vector * (1 + 1e-8), vector + 1e-8 * torch.randn(16)]))) == 1


# Cards


@pytest.mark.parametrize(
    "change",
    [
        {"phrases": []},
        {"alpha": -0.1},
        {"order": "reversed"},
        {"re_attention": True},
        {"skip_scales": [0.5]},
        {"skip_scales": [0.5, 1.5]},
        {"last_step": -1},
        {"sharpness": 0.0},
        {"mask": -1},
    ],
)
def test_parameters_that_make_no_sense_are_refused(pipe: Any, change: dict) -> None:
    with pytest.raises(UserError, match=f"defense safree: parameter '{next(iter(change))}'"):
        safree.load(pipe, params(**change), None)


def test_phrases_longer_than_the_window_are_refused_rather_than_cut(pipe: Any) -> None:
    with pytest.raises(UserError, match="text encoder 24"):
        safree.load(pipe, params(phrases=["star"] * 20), None)
    with pytest.raises(UserError, match="phrase of SAFREE takes 32 tokens, the text encoder 24"):
        safree.load(pipe, params(phrases=["star " * 30], negative_prompt=False), None).attach(pipe)
    assert "forward" not in vars(pipe.unet)
