"""SLD against its equations in a denoising loop written by hand, and its state from image to image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.defenses import sld
from harness.defenses.base import parse
from harness.errors import UserError

# As published; the scales are lowered to where a random denoiser's small predictions feel all terms.
PARAMS = {"phrases": ["star", "ring"], "scale": 30.0, "threshold": 0.01, "momentum_scale": 0.5, "momentum_beta": 0.7}
PROMPTS = ["a red star", "blue square"]


def params(**changes: Any) -> dict[str, Any]:
    return {**PARAMS, "warmup": 0, **changes}


@pytest.fixture
def defended(pipe: Any, draw: Any) -> Any:
    """Latents under SLD; the pipeline is left as it was."""

    def run(settings: dict, prompts: list[str], **how: Any) -> torch.Tensor:
        defense = sld.load(pipe, settings, None)
        defense.attach(pipe)
        try:
            return draw(pipe, prompts, **how, **defense.begin(prompts))
        finally:
            defense.detach(pipe)

    return run


def by_hand(pipe: Any, settings: dict, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
    """Schramowski et al., Eq. 3 to 8, one image at a time, three separate predictions a step."""

    def embed(text: str) -> torch.Tensor:
        return pipe.encode_prompt(text, torch.device("cpu"), 1, False)[0]

    done = []
    for seed, prompt in enumerate(prompts):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        pipe.scheduler.set_timesteps(steps)
        latents, momentum = latents * pipe.scheduler.init_noise_sigma, torch.zeros(1, 4, 8, 8)
        for i, t in enumerate(pipe.scheduler.timesteps):
            u, c, s = (pipe.unet(latents, t, embed(x)).sample for x in ("", prompt, ", ".join(settings["phrases"])))
            mu = torch.zeros_like(c)
            inside = (c - s) < settings["threshold"]
            mu[inside] = torch.minimum(torch.ones_like(c), settings["scale"] * (c - s).abs())[inside]
            gamma = mu * (s - u) + settings["momentum_scale"] * momentum
            momentum = settings["momentum_beta"] * momentum + (1 - settings["momentum_beta"]) * gamma
            push = c - u - gamma if i >= settings["warmup"] else c - u
            latents = pipe.scheduler.step(u + guidance * push, t, latents).prev_sample
        done.append(latents)
    return torch.cat(done)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [params(), params(warmup=3), params(scale=5000, threshold=1.0), params(momentum_scale=0.0, threshold=0.0)],
)
def test_pipeline_draws_what_the_equations_say(pipe: Any, draw: Any, defended: Any, settings: dict) -> None:
    got = defended(settings, PROMPTS, steps=6, guidance_scale=5.0)
    expected = by_hand(pipe, settings, PROMPTS, steps=6, guidance=5.0)
    plain = draw(pipe, PROMPTS, steps=6, guidance_scale=5.0)
    difference = (plain - expected).abs().max()
    assert difference > 0.01  # the correction is felt
    assert (got - expected).abs().max() < 1e-3 * difference


def test_momentum_grows_during_the_warm_up(pipe: Any, defended: Any) -> None:
    """Were the momentum to start at 0 after the warm-up, its scale would not matter to the first correction."""
    without = defended(params(warmup=5, momentum_scale=0.0), PROMPTS, steps=5)
    with_it = defended(params(warmup=5, momentum_scale=0.5), PROMPTS, steps=5)
    assert not torch.equal(without, with_it)


@pytest.mark.parametrize(("warmup", "felt"), [(5, True), (6, False)])
def test_warm_up_counts_denoiser_calls_of_which_pndm_makes_one_more_than_steps(
    pipe: Any, draw: Any, defended: Any, warmup: int, felt: bool
) -> None:
    difference = (defended(params(warmup=warmup), PROMPTS, steps=5) - draw(pipe, PROMPTS, steps=5)).abs().max()
    assert (difference > 1e-3) == felt


def test_every_micro_batch_starts_anew(pipe: Any, draw: Any) -> None:
    defense = sld.load(pipe, params(warmup=2), None)
    defense.attach(pipe)
    drawn = []
    for prompts in (PROMPTS, ["art", "ring"], PROMPTS):
        defense.begin(PROMPTS)
        drawn.append(draw(pipe, prompts))
    defense.detach(pipe)
    assert torch.equal(drawn[0], drawn[2])


def test_batch_mates_and_place_do_not_matter(pipe: Any, defended: Any) -> None:
    first = defended(params(), ["a red star", "blue", "ring"], seeds=[7, 8, 9])[0]
    last = defended(params(), ["square", "art", "a red star"], seeds=[1, 2, 7])[2]
    # Latents, which threads may cut differently; images are compared bit for bit elsewhere.
    assert torch.allclose(first, last, atol=1e-4)


def test_another_batch_size_changes_next_to_nothing(pipe: Any, defended: Any) -> None:
    together = defended(params(), PROMPTS, seeds=[7, 8])[0]
    alone = defended(params(), PROMPTS[:1], seeds=[7])[0]
    assert torch.allclose(together, alone, atol=1e-3)


def test_detached_pipeline_draws_as_before_bit_for_bit(pipe: Any, draw: Any, defended: Any) -> None:
    before = draw(pipe, PROMPTS)
    assert not torch.equal(before, defended(params(), PROMPTS))
    assert torch.equal(before, draw(pipe, PROMPTS))
    assert "forward" not in vars(pipe.unet)


def test_detaching_keeps_a_forward_that_was_there_before(pipe: Any) -> None:
    own = pipe.unet.forward
    pipe.unet.forward = own
    defense = sld.load(pipe, params(), None)
    defense.attach(pipe)
    assert pipe.unet.forward is not own
    defense.detach(pipe)
    assert pipe.unet.forward is own


def test_detaching_twice_or_never_attached_is_harmless(pipe: Any) -> None:
    defense = sld.load(pipe, params(), None)
    defense.detach(pipe)
    defense.attach(pipe)
    defense.detach(pipe)
    defense.detach(pipe)
    assert "forward" not in vars(pipe.unet)


def test_attaching_twice_is_an_error(pipe: Any) -> None:
    defense = sld.load(pipe, params(), None)
    defense.attach(pipe)
    with pytest.raises(RuntimeError, match="attached already"):
        defense.attach(pipe)


def test_without_guidance_an_image_is_drawn_undefended_and_its_row_says_so(pipe: Any, draw: Any, defended: Any) -> None:
    plain = draw(pipe, PROMPTS, guidance_scale=1.0)
    assert torch.equal(defended(params(), PROMPTS, guidance_scale=1.0), plain)
    defense = sld.load(pipe, params(), None)
    assert [defense.note(g) for g in (0.5, 1.0, 1.01, 7.5)] == ["sld:no-guidance"] * 2 + [None] * 2


def test_denoiser_output_keeps_both_of_its_forms(pipe: Any) -> None:
    defense = sld.load(pipe, params(), None)
    defense.attach(pipe)
    latents, texts = torch.randn(4, 4, 8, 8), torch.randn(4, 24, 128)
    defense.begin(PROMPTS)
    as_tuple = pipe.unet(latents, torch.full((4,), 500), texts, return_dict=False)
    defense.begin(PROMPTS)
    as_output = pipe.unet(latents, torch.tensor(500), encoder_hidden_states=texts)
    assert len(as_tuple) == 1
    assert torch.allclose(as_tuple[0], as_output.sample, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 1.0},
        {"scale": -5.0},
        {"momentum_scale": -0.1},
        {"momentum_beta": 1.0},
        {"warmup": -1},
        {"phrases": []},
    ],
)
def test_parameters_that_would_not_lead_away_are_refused(pipe: Any, change: dict) -> None:
    with pytest.raises(UserError, match=f"defense sld: parameter '{next(iter(change))}'"):
        sld.load(pipe, params(**change), None)


def test_phrases_longer_than_the_window_are_refused_rather_than_cut(pipe: Any) -> None:
    with pytest.raises(UserError, match="text encoder 24"):
        sld.load(pipe, params(phrases=["star"] * 20), None).attach(pipe)


predictions = st.lists(st.floats(-10, 10), min_size=6, max_size=6)


@settings(deadline=None)
@given(predictions, predictions, predictions, st.floats(2, 1e4), st.floats(-1, 1))
def test_correction_is_at_most_the_whole_way_to_the_concept_and_none_where_it_is_far(
    u: list, c: list, s: list, scale: float, threshold: float
) -> None:
    predicted = sld.Predictions(*(torch.tensor(x, dtype=torch.float64) for x in (u, c, s)))
    rules = parse(sld.SldParams, params(scale=scale, threshold=threshold, momentum_scale=0.0))
    gamma, _ = sld.correction(predicted, torch.zeros(6, dtype=torch.float64), rules)
    far = predicted.prompt - predicted.concept >= threshold
    assert (gamma[far] == 0).all()
    assert (gamma.abs() <= (predicted.concept - predicted.empty).abs()).all()
