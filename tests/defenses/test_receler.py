"""Receler on small real models: its regulariser by hand, what it freezes, its adversary, its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import defenses
from harness.defenses import masks, receler, receler_training
from harness.defenses.base import BuildContext, BuildStep
from harness.errors import UserError

PARAMS = {
    "erase": ["star"], "rank": 4, "steps": 3, "lr": 1e-2, "mask_side": 8, "sampler_steps": 3,
    "adversarial_tokens": 4, "adversarial_steps": 2, "batch": 2,
}  # fmt: skip
PROMPTS = ["a red star", "blue square"]
PLACE = "down_blocks.0.attentions.0"


@pytest.fixture
def built(pipe: Any) -> dict[str, torch.Tensor]:
    return receler.build(pipe, PARAMS, BuildContext())


def test_erasers_have_the_released_codes_names_and_shapes(pipe: Any, built: dict) -> None:
    assert len(built) == 7 * 4
    shapes = {k.removeprefix(PLACE + "."): tuple(t.shape) for k, t in built.items() if k.startswith(PLACE)}
    assert shapes == {"down.weight": (4, 80), "down.bias": (4,), "up.weight": (80, 4), "up.bias": (80,)}
    assert "mid_block.attentions.0.up.weight" in built


def test_new_erasers_add_nothing_and_detaching_restores_every_bit(pipe: Any, draw: Any) -> None:
    before = draw(pipe, PROMPTS)
    defense = receler.load(pipe, PARAMS, receler.build(pipe, {**PARAMS, "steps": 0}, BuildContext()))
    defense.attach(pipe)
    same = draw(pipe, PROMPTS, **defense.begin(PROMPTS))
    defense.detach(pipe)
    assert torch.equal(before, same)
    trained = receler.load(pipe, PARAMS, receler.build(pipe, PARAMS, BuildContext()))
    trained.attach(pipe)
    changed = draw(pipe, PROMPTS, **trained.begin(PROMPTS))
    trained.detach(pipe)
    assert not torch.equal(before, changed)
    assert torch.equal(before, draw(pipe, PROMPTS))


def test_an_image_does_not_depend_on_its_batch_mates(pipe: Any, draw: Any, built: dict) -> None:
    defense = receler.load(pipe, PARAMS, built)
    defense.attach(pipe)
    one, other = (draw(pipe, [PROMPTS[0], mate], **defense.begin(PROMPTS)) for mate in ("star", "blue"))
    defense.detach(pipe)
    assert torch.equal(one[0], other[0])


def test_only_erasers_are_trained(pipe: Any) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    asked = {k: p.requires_grad for k, p in pipe.unet.named_parameters()}
    receler.build(pipe, PARAMS, BuildContext())
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert asked == {k: p.requires_grad for k, p in pipe.unet.named_parameters()}
    assert all(not m._forward_hooks for m in pipe.unet.modules())


@pytest.mark.parametrize("variant", ["described", "released"])
def test_training_lowers_the_loss(pipe: Any, variant: str) -> None:
    told: list[BuildStep] = []
    params = {**PARAMS, "variant": variant, "steps": 30, "lr": 3e-3, "adversarial_steps": 1, "sampler_steps": 2}
    receler.build(pipe, params, BuildContext(report=told.append))
    losses = [step.loss for step in told if step.loss is not None]
    assert len(losses) == 30
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


@pytest.mark.parametrize("variant", ["described", "released"])
def test_a_build_that_was_stopped_gives_what_a_whole_one_gives(
    pipe: Any, tmp_path: Path, variant: str, monkeypatch: Any
) -> None:
    from harness.defenses.training import loop

    class StoppedError(Exception):
        pass

    def stop(step: BuildStep) -> None:
        if step.step == 2:
            raise StoppedError

    whole_plan = loop.Training

    def often(**values: Any) -> loop.Training:
        return whole_plan(**{**values, "save_every": 2})

    params = {**PARAMS, "variant": variant}
    whole = receler.build(pipe, params, BuildContext())
    monkeypatch.setattr(loop, "Training", often)
    with pytest.raises(StoppedError):
        receler.build(pipe, params, BuildContext(folder=tmp_path, report=stop))
    resumed = receler.build(pipe, params, BuildContext(folder=tmp_path))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def trainer(pipe: Any, **params: Any) -> receler_training.Trainer:
    from harness.defenses.training import loop

    settings = receler.parse(receler.RecelerParams, {**PARAMS, **params})
    student = loop.student_of(pipe.unet)
    return receler_training.Trainer(pipe, student, receler.new_erasers(student, 4, 0), settings)


def test_the_adversary_nears_what_the_undefended_denoiser_draws(pipe: Any) -> None:
    """By Adam as torch has it, from the same start: the vectors and moments that are kept are its own."""
    from harness.defenses.training import losses

    made = trainer(pipe, adversarial_steps=3, adversarial_lr=0.05)
    start = made.state["adversary.0"].clone()
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    text = losses.text_states(pipe, ["star"], "nudity")
    drawn = torch.randn(2, 4, 8, 8)
    predicted = made._attacked(0, latents, timesteps, drawn)
    own = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([own], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        states = torch.cat([text[:, :2], own, text[:, 6:]], dim=1)  # start, star, then the vectors
        by_hand = losses.predict(pipe.unet, latents, timesteps, states)
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(by_hand, drawn).backward()
        optimiser.step()
    assert torch.allclose(made.state["adversary.0"], own, atol=1e-6)
    assert torch.allclose(predicted, by_hand, atol=1e-5)
    assert int(made.state["adversary.0.step"]) == 3


def test_the_released_variant_has_no_adversary(pipe: Any) -> None:
    assert trainer(pipe, variant="released").state == {}


def test_the_regulariser_counts_what_is_added_outside_the_mask() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, :2], mask[1, 0, 0, 0] = 1, 1
    added = {"fine": torch.randn(2, 16, 3), "coarse": torch.randn(2, 4, 5)}
    terms = []
    for name, side in (("fine", 4), ("coarse", 2)):
        total, free = 0.0, 0
        for image in range(2):
            for y in range(side):
                for x in range(side):
                    if not mask[image, 0, y * 4 // side, x * 4 // side]:
                        total += float((added[name][image, y * side + x] ** 2).mean())
                        free += 1
        terms.append(total / free)
    assert float(receler_training.outside(added, mask)) == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_the_mask_is_where_the_words_are_attended_to() -> None:
    maps = {"a": torch.zeros(1, 2, 16, 5), "b": torch.zeros(1, 2, 16, 5), "small": torch.ones(1, 2, 4, 5)}
    maps["a"][0, 0, 3, 1], maps["b"][0, 1, 7, 2] = 0.9, 0.3
    maps["a"][0, 0, 5, 4] = 1.0  # another word
    mask = masks.concept_mask(maps, [1, 2], side=4, threshold=0.5).flatten()
    assert mask.nonzero().flatten().tolist() == [3]
    assert masks.concept_mask(maps, [1, 2], side=4, threshold=0.3).flatten().nonzero().flatten().tolist() == [3, 7]
    with pytest.raises(UserError, match=r"sides \[2, 4\], not `mask_side` 16"):
        masks.concept_mask(maps, [1], side=16, threshold=0.5)


def released_file(built: dict, folder: Path, half: bool = False) -> Path:
    """The released code's two files."""
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in built.items():
        block, _, part = key.rpartition(".")
        block, _, layer = block.rpartition(".")
        nested.setdefault(block, {})[f"{layer}.{part}"] = tensor.half() if half else tensor
    torch.save(nested, folder / receler.WEIGHTS)
    (folder / "eraser_config.json").write_text(json.dumps({"eraser_type": "adapter", "eraser_rank": 4}))
    return folder / receler.WEIGHTS


@pytest.mark.parametrize("half", [False, True])
def test_released_erasers_load_by_file_and_by_folder(pipe: Any, built: dict, tmp_path: Path, half: bool) -> None:
    file = released_file(built, tmp_path, half)
    for weights in (file, tmp_path):
        read = defenses.build("receler", pipe, {**PARAMS, "weights": str(weights)})
        assert read.keys() == built.keys()
        assert all(torch.equal(read[k], built[k].half().float() if half else built[k]) for k in built)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != f"{PLACE}.up.bias"}, f"1 of 28 tensors .* '{PLACE}.up.bias'"),
        (lambda t: {**t, f"{PLACE}.upp.bias": torch.zeros(1)}, f"'{PLACE}.upp.bias' is not one of .* did you mean"),
        (lambda t: {**t, f"{PLACE}.up.weight": torch.zeros(320, 4)}, r"has shape \(320, 4\), .* needs \(80, 4\)"),
    ],
)
def test_erasers_that_do_not_fit_are_named(pipe: Any, built: dict, change: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        receler.load(pipe, PARAMS, change(built)).attach(pipe)
    assert all(not m._forward_hooks for m in pipe.unet.modules())


def test_a_missing_file_is_named(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights at .*eraser_weights\.pt"):
        defenses.build("receler", pipe, {**PARAMS, "weights": str(tmp_path)})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"erase": ["a girl"]}, "age-term"),
        ({"mask_side": 16}, "not `mask_side` 16"),
        ({"adversarial_tokens": 23}, "23 adversarial tokens do not fit behind 'star' in .* window of 24"),
        ({"variant": "as-released"}, "parameter 'variant'"),
    ],
)
def test_what_cannot_be_built_is_refused(pipe: Any, params: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        receler.build(pipe, {**PARAMS, **params}, BuildContext())


def test_sd14s_erasers_have_three_million_parameters(sd14: Any) -> None:
    with torch.device("meta"):
        erasers = receler.new_erasers(sd14.unet, 128, 0)
    assert sum(p.numel() for p in erasers.values()) == 3_209_408
    assert len(erasers) == 16 * 4
    receler.check_artefact(erasers, sd14)


def test_an_estimate_counts_each_adversarial_step() -> None:
    described, released = (receler.estimate({**PARAMS, "variant": v}) for v in ("described", "released"))
    assert described.steps == released.steps == 3
    assert described.denoiser_calls - released.denoiser_calls == 3 * 2 * 3
