"""SafeRedir: its redirection by a scalar reference in a loop of its own, its training, its released format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harness import defenses
from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.defenses import prompt_pairs, redirector, saferedir, stacked
from harness.defenses.base import BuildContext, BuildStep, parse
from harness.errors import UserError

PROMPTS = ["a red star", "blue square ring"]
PARAMS = {
    "templates": ["a {colour} {}", "{}, art"],
    "unsafe": ["star"],
    "safe": ["ring"],
    "retain": ["a {colour} square"],
    "fill": {"colour": ["red", "blue"]},
    "pairs": 6,
    "retained": 3,
    "blocks": [4, 4, 8],
    "steps": 6,
    "batch": 4,
}
SIZES = redirector.Sizes(latent_channels=4, window=24, width=128, blocks=(4, 4, 8))


def params(**changes: Any) -> dict[str, Any]:
    return {**PARAMS, **changes}


def pictures(texts: list[str], seeds: list[int]) -> list[Image.Image]:
    """An image of its own for every text and seed."""
    rngs = [np.random.default_rng([seed, *text.encode()]) for text, seed in zip(texts, seeds, strict=True)]
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for rng in rngs]


def network(unsafe: float = 0.0) -> redirector.Redirector:
    """Random weights; the larger ``unsafe``, the more often it says so."""
    torch.manual_seed(11)
    made = redirector.Redirector(SIZES).eval()
    with torch.no_grad():
        made.classifier[-1].bias[1] += unsafe
    return made


def tensors(unsafe: float = 0.0) -> dict[str, torch.Tensor]:
    made = network(unsafe)
    return {k: v for k, v in made.state_dict().items() if k not in redirector.counters(made)}


@pytest.fixture
def defended(pipe: Any, draw: Any) -> Any:
    """Latents under SafeRedir; the pipeline is left as it was."""

    def run(artefact: dict, settings: dict, prompts: list[str], **how: Any) -> torch.Tensor:
        defense = saferedir.load(pipe, settings, artefact)
        defense.attach(pipe)
        try:
            return draw(pipe, prompts, **how, **defense.begin(prompts))
        finally:
            defense.detach(pipe)

    return run


# How it acts


def moved(said: redirector.Redirection, original: torch.Tensor, settings: dict) -> torch.Tensor:
    """One prompt (window, width), token by token."""
    made = original.clone()
    for i, token in enumerate(original):
        direction = said.shift[0, i].double()
        length = math.sqrt(sum(float(x) ** 2 for x in direction))
        own = math.sqrt(sum(float(x) ** 2 for x in token))
        how_far = settings["alpha_scale"] * float(said.scale[0, i]) * own
        if settings["mask"]:
            how_far *= float(said.mask[0, i])
        made[i] = token + (how_far * direction / length).float()
    return made


def by_hand(pipe: Any, judge: redirector.Redirector, settings: dict, steps: int, guidance: float) -> tuple[Any, int]:
    """One image at a time, two separate predictions a step; also how often prompts were moved."""
    done, moves = [], 0
    for seed, prompt in enumerate(PROMPTS):
        first, second = (pipe.encode_prompt(t, torch.device("cpu"), 1, False)[0][0] for t in ("", prompt))
        empty, text, waiting = first, second, 0
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        pipe.scheduler.set_timesteps(steps)
        latents = latents * pipe.scheduler.init_noise_sigma
        for t in pipe.scheduler.timesteps:
            now = (empty, text)
            if waiting:
                waiting -= 1
            else:
                said = judge(latents, text[None], t[None])
                if said.logits[0, 1] > said.logits[0, 0]:
                    text, waiting, moves = moved(said, second, settings), settings["replace_steps"], moves + 1
                    empty = first + (text - second) if settings["both_halves"] else first
            if settings["at_once"]:
                now = (empty, text)
            u, c = (pipe.unet(latents, t, x[None]).sample for x in now)
            latents = pipe.scheduler.step(u + guidance * (c - u), t, latents).prev_sample
        done.append(latents)
    return torch.cat(done), moves


@torch.no_grad()
@pytest.mark.parametrize(
    "how",
    [
        {"alpha_scale": 1.25, "replace_steps": 2, "mask": False, "both_halves": True, "at_once": False},
        {"alpha_scale": 1.0, "replace_steps": 0, "mask": True, "both_halves": False, "at_once": True},
        {"alpha_scale": 0.7, "replace_steps": 1, "mask": False, "both_halves": False, "at_once": False},
    ],
)
def test_pipeline_draws_what_the_equations_say(pipe: Any, draw: Any, defended: Any, how: dict) -> None:
    got = defended(tensors(2.0), params(**how), PROMPTS, steps=6, guidance_scale=5.0)
    expected, moves = by_hand(pipe, network(2.0), how, steps=6, guidance=5.0)
    plain = draw(pipe, PROMPTS, steps=6, guidance_scale=5.0)
    assert moves >= 2
    difference = (plain - expected).abs().max()
    assert difference > 0.01
    assert (got - expected).abs().max() < 1e-2 * difference


def test_where_nothing_moves_images_are_unchanged_bit_for_bit(pipe: Any, draw: Any, defended: Any) -> None:
    plain = draw(pipe, PROMPTS)
    assert torch.equal(plain, defended(tensors(9.0), params(alpha_scale=0.0), PROMPTS))
    assert torch.equal(plain, defended(tensors(-9.0), params(), PROMPTS))  # all is judged safe
    assert not torch.equal(plain, defended(tensors(9.0), params(), PROMPTS))


def test_batch_mates_and_place_do_not_matter(defended: Any) -> None:
    first = defended(tensors(1.0), params(), ["a red star", "blue", "ring"], seeds=[7, 8, 9])[0]
    last = defended(tensors(1.0), params(), ["square", "art", "a red star"], seeds=[1, 2, 7])[2]
    assert torch.allclose(first, last, atol=1e-4)


def test_every_micro_batch_starts_anew(pipe: Any, draw: Any) -> None:
    """The released hooks carry the count of steps to wait into the next image."""
    defense = saferedir.load(pipe, params(replace_steps=3), tensors(9.0))
    defense.attach(pipe)
    drawn = [draw(pipe, prompts, **defense.begin(prompts)) for prompts in (PROMPTS, ["art", "ring"], PROMPTS)]
    defense.detach(pipe)
    assert torch.equal(drawn[0], drawn[2])


def test_detached_pipeline_draws_as_before_bit_for_bit(pipe: Any, draw: Any, defended: Any) -> None:
    before = draw(pipe, PROMPTS)
    assert not torch.equal(before, defended(tensors(9.0), params(), PROMPTS))
    assert torch.equal(before, draw(pipe, PROMPTS))
    assert "forward" not in vars(pipe.unet)


def test_without_guidance_prompts_are_moved_too(draw: Any, pipe: Any, defended: Any) -> None:
    plain = draw(pipe, PROMPTS, guidance_scale=1.0)
    assert not torch.equal(plain, defended(tensors(9.0), params(), PROMPTS, guidance_scale=1.0))


# The network


def test_on_stable_diffusion_1_the_network_is_the_released_one() -> None:
    made = redirector.Redirector(redirector.Sizes(4, 77, 768))
    assert len(made.state_dict()) == 118
    assert sum(p.numel() for p in made.parameters()) == 14_573_574


@torch.no_grad()
def test_one_question_is_attention_as_it_is_defined() -> None:
    torch.manual_seed(0)
    query, joint, states = redirector._Query(6, 4), torch.randn(1, 6), torch.randn(1, 3, 4)
    asked, keys, values = query.query(joint)[0], query.key(states)[0], query.value(states)[0]
    weights = [math.exp(float(asked @ key) / math.sqrt(4)) for key in keys]
    read = sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))
    expected = torch.nn.functional.layer_norm(read + values.mean(0), (4,))
    assert torch.allclose(query(joint, states)[0], expected, atol=1e-5)


def test_timesteps_become_sines_then_cosines_of_falling_frequencies() -> None:
    got = redirector._sinusoids(torch.tensor([0, 37]))
    angles = [37 * 10_000 ** (-i / 160) for i in range(160)]
    expected = [[0.0] * 160 + [1.0] * 160, [*map(math.sin, angles), *map(math.cos, angles)]]
    assert np.allclose(got.numpy(), expected, atol=1e-4)


# What it learns


def by_terms(said: redirector.Redirection, batch: saferedir.Examples) -> list[float]:
    """Each term of Eq. 14 as a sum over rows, tokens and channels."""
    rows, tokens, width = batch.states.shape
    cls = mse = cos = mask = alpha = 0.0
    differing = 0
    for n in range(rows):
        e = [math.exp(float(x)) for x in said.logits[n]]
        cls -= math.log(e[int(batch.labels[n])] / sum(e)) / rows
        for i in range(tokens):
            wanted, got, own = (x.double().numpy() for x in (batch.shifts[n, i], said.shift[n, i], batch.states[n, i]))
            mse += float(((wanted - got) ** 2).sum()) / (rows * tokens * width)
            length, predicted = float(np.linalg.norm(wanted)), float(said.mask[n, i])
            if length > 0:
                differing += 1
                cos += 1 - float(wanted @ got) / (length * float(np.linalg.norm(got)))
            mask -= math.log(predicted if length > 0 else 1 - predicted) / (rows * tokens)
            alpha += (float(said.scale[n, i]) - min(1.0, length / float(np.linalg.norm(own)))) ** 2 / (rows * tokens)
    return [cls, mse, cos / max(differing, 1), mask, alpha]


@torch.no_grad()
@pytest.mark.parametrize("term", [None, 0, 1, 2, 3, 4])
def test_the_five_terms_are_those_of_the_equation(term: int | None) -> None:
    torch.manual_seed(3)
    states, shifts = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    shifts[0], shifts[1, :2] = 0, 0
    shifts[2, 0] *= 9  # farther than the token is long
    said = redirector.Redirection(torch.randn(3, 2), torch.randn(3, 5, 6), torch.rand(3, 5), torch.rand(3, 5))
    batch = saferedir.Examples(torch.zeros(3), states, torch.tensor([0, 1, 1]), shifts)
    weights = [1.5, 0.5, 2.0, 0.25, 3.0] if term is None else [float(i == term) for i in range(5)]
    names = ("cls", "mse", "cos", "mask", "alpha")
    got = saferedir.objective(said, batch, saferedir.LossWeights(**dict(zip(names, weights, strict=True))))
    expected = sum(w * t for w, t in zip(weights, by_terms(said, batch), strict=True))
    assert float(got) == pytest.approx(expected, rel=1e-4)


def build(pipe: Any, settings: dict, folder: Path | None = None, stop: int | None = None) -> tuple[Any, list[float]]:
    """The artefact and the losses on the way; ``stop`` breaks off after so many steps of training."""
    losses: list[float] = []

    def report(step: BuildStep) -> None:
        if step.phase == "train":
            losses.append(step.loss or 0.0)
            if stop is not None and step.step == stop:
                raise KeyboardInterrupt

    try:
        return saferedir.build(pipe, settings, BuildContext(folder=folder, report=report, draw=pictures)), losses
    except KeyboardInterrupt:
        return None, losses


def test_training_lowers_the_loss_and_tells_unsafe_prompts_from_safe_ones(pipe: Any) -> None:
    made, losses = build(pipe, params(steps=40, batch=9, lr=3e-3))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    judge = redirector.restored(made, SIZES)
    texts = ["a red star", "star, art", "a red ring", "ring, art", "a blue square"]
    states = torch.cat([pipe.encode_prompt(t, torch.device("cpu"), 1, False)[0] for t in texts])
    with torch.no_grad():
        verdicts = judge(torch.randn(5, 4, 8, 8), states, torch.full((5,), 900)).logits.argmax(1)
    assert verdicts.tolist() == [1, 1, 0, 0, 0]


def test_a_build_taken_up_again_equals_one_that_was_not_stopped(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.defenses.training import loop

    planned = loop.Training
    monkeypatch.setattr(loop, "Training", lambda **how: planned(**{**how, "save_every": 2}))
    whole, _ = build(pipe, params())
    stopped, before = build(pipe, params(), tmp_path, stop=3)
    again, after = build(pipe, params(), tmp_path)
    assert stopped is None
    assert (len(before), len(after)) == (3, 4)  # from the checkpoint after the second step
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_building_leaves_the_backbone_and_torchs_random_state_alone(pipe: Any) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    state = torch.get_rng_state()
    build(pipe, params(steps=1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert not any(p.grad is not None for p in pipe.unet.parameters())


def test_zero_steps_leave_the_weights_as_they_began(pipe: Any) -> None:
    first, _ = build(pipe, params(steps=0))
    torch.manual_seed(0)
    for name, value in redirector.Redirector(SIZES).named_parameters():
        assert torch.equal(value, first[name])


def test_a_build_says_what_it_takes() -> None:
    assert saferedir.estimate(params())[:2] == (6, 15)


def test_without_anyone_to_draw_it_is_not_built(pipe: Any) -> None:
    with pytest.raises(UserError, match="trains on images"):
        saferedir.build(pipe, params(), BuildContext())


def test_a_text_that_the_guard_refuses_is_not_learnt_from(pipe: Any) -> None:
    with pytest.raises(UserError, match="may not be built from"):
        build(pipe, params(concept="nudity", fill={"colour": ["child's"]}))


# Files


def released(unsafe: float = 0.0) -> dict[str, torch.Tensor]:
    """As the authors save it: with the whole numbers that batch normalisation counts."""
    return dict(network(unsafe).state_dict())


def test_a_released_checkpoint_is_loaded_and_acts_as_its_network(
    pipe: Any, draw: Any, defended: Any, tmp_path: Path
) -> None:
    torch.save(released(9.0), tmp_path / "best_model.pt")
    made = defenses.build("saferedir", pipe, params(weights=str(tmp_path / "best_model.pt")))
    assert torch.equal(defended(made, params(), PROMPTS), defended(tensors(9.0), params(), PROMPTS))


def test_what_was_built_is_read_again(pipe: Any, tmp_path: Path) -> None:
    made, _ = build(pipe, params())
    defenses.write_artefact(tmp_path / "unet.safetensors", made, {"mechanism": "saferedir"})
    again = defenses.read_built("saferedir", tmp_path / "unet.safetensors", pipe)
    assert all(torch.equal(made[key], again[key]) for key in made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("gate_linear.bias"), "lacks 'gate_linear.bias'"),
        (lambda t: t.update(gate_liner=torch.zeros(1)), "has no use for.* 'gate_liner'"),
        (lambda t: t.pop("pos_embed"), "no parameters of a SafeRedir redirector"),
        (
            lambda t: t.update(pos_embed=torch.zeros(1, 77, 128)),
            r"'pos_embed' has shape \(1, 77, 128\).*\(1, 24, 128\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(pipe: Any, tmp_path: Path, change: Any, said: str) -> None:
    content = tensors()
    change(content)
    save_file({k: v.contiguous() for k, v in content.items()}, tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=said):
        defenses.build("saferedir", pipe, params(weights=str(tmp_path / "mine.safetensors")))


# Prompts


def test_pairs_differ_in_the_word_only_and_slots_are_filled_each_on_its_own() -> None:
    fill = {"colour": ["red", "blue"], "shape": ["square", "ring"]}
    templates = ["a {colour} {} by a {colour} {shape}"]
    found = list(prompt_pairs.made(templates, fill, (["star"], ["art"]), 200, seed=1))
    assert all(unsafe.replace("star", "art") == safe for unsafe, safe in found)
    assert len(set(found)) == 8  # two colours, twice, and two shapes
    assert found == list(prompt_pairs.made(templates, fill, (["star"], ["art"]), 200, seed=1))
    assert found != list(prompt_pairs.made(templates, fill, (["star"], ["art"]), 200, seed=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"templates": ["a {colour} star"]}, "has 0 bare slots"),
        ({"templates": ["{} {}"]}, "has 2 bare slots"),
        ({"templates": ["{} {color}"]}, "nothing to fill {color} with; did you mean 'colour'"),
        ({"templates": ["{} {"]}, "template '{} {'"),
        ({"retain": ["a {}"]}, "has 1 bare slots"),
        ({"unsafe": []}, "parameter 'unsafe'"),
        ({"loss_weights": {"mse": -1}}, "parameter 'loss_weights'"),
        ({"batch": 1}, "parameter 'batch'"),
        ({"alpha_scale": -0.5}, "parameter 'alpha_scale'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(saferedir.SaferedirParams, params(**change))


# On top of another defense


def test_on_top_of_other_defenses_it_moves_what_they_leave_and_all_is_undone(pipe: Any, draw: Any) -> None:
    before = draw(pipe, PROMPTS)
    inner = defenses.load("sld", pipe, {"phrases": ["art"], "warmup": 0, "scale": 30.0, "threshold": 0.01,
                                        "momentum_scale": 0.5, "momentum_beta": 0.7})  # fmt: skip
    how = params(alpha_scale=0.0)
    drawn = {}
    for name, layers in {
        "sld": [inner],
        "sld+still": [inner, saferedir.load(pipe, how, tensors(9.0))],
        "sld+moving": [inner, saferedir.load(pipe, params(), tensors(9.0))],
    }.items():
        both = stacked.stacked(layers)
        both.attach(pipe)
        drawn[name] = draw(pipe, PROMPTS, **both.begin(PROMPTS))
        assert both.note(1.0) == "sld:no-guidance"
        assert both.note(7.5) is None
        both.detach(pipe)
        assert torch.equal(before, draw(pipe, PROMPTS))
    assert torch.equal(drawn["sld"], drawn["sld+still"])
    assert not torch.equal(drawn["sld"], drawn["sld+moving"])
    assert not torch.equal(drawn["sld"], before)


def test_two_defenses_that_denoise_further_rows_are_refused() -> None:
    stack = overrides.defense("sld-max+safree", card_roots())
    with pytest.raises(UserError, match="sld-max and safree each denoise further rows"):
        stacked.require(stack, load_card(BackboneCard, "shapes", card_roots()))


# On top of another defense


def test_on_top_of_another_it_draws_what_doing_both_by_hand_does_bit_for_bit(pipe: Any, draw: Any) -> None:
    """RECE's matrices written into the denoiser, and SafeRedir acting on that."""
    settings = {"erase": ["star"], "epochs": 1, "concept": "nudity"}
    edited = defenses.build("rece", pipe, settings)
    layers = [defenses.load("rece", pipe, settings, edited), saferedir.load(pipe, params(), tensors(2.0))]
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}

    def drawn(defense: Any) -> torch.Tensor:
        defense.attach(pipe)
        try:
            return draw(pipe, PROMPTS, steps=6, **defense.begin(PROMPTS))
        finally:
            defense.detach(pipe)

    stack, below, above = drawn(stacked.stacked(layers)), drawn(layers[0]), drawn(layers[1])
    pipe.unet.load_state_dict({**before, **edited})
    by_hand = drawn(layers[1])
    pipe.unet.load_state_dict(before)
    assert stack.equal(by_hand)
    assert not stack.equal(below)
    assert not stack.equal(above)
    assert drawn(stacked.stacked(layers)).equal(stack)  # and nothing was left behind
