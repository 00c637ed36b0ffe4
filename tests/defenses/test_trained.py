"""ESD, CA and SalUn on random models of the real classes: what they minimise, what they leave alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from painter import Painter, StoppedError

from harness import defenses
from harness.defenses import ca, esd, salun
from harness.defenses.base import BuildContext, UnetDelta, parse
from harness.defenses.training import attention, data, loop, losses
from harness.errors import UserError

ESD = {"erase": ["star"], "steps": 4, "sampler_steps": 3, "batch": 2, "lr": 1e-3, "concept": "art"}
CA = {
    "erase": ["star"], "anchors": ["red square", "blue square"], "replace": "square", "images": 6, "steps": 4,
    "batch": 2, "lr": 1e-3, "prior": 1.0, "concept": "art",
}  # fmt: skip
SALUN = {
    "forget": ["red star", "blue star"], "keep": ["red ring", "blue ring"], "images": 6, "steps": 4, "batch": 2,
    "lr": 1e-3, "concept": "art",
}  # fmt: skip
CASES = {"esd": ESD, "ca": CA, "salun": SALUN}
STOPS = {
    "esd": [("train", 3)],
    "ca": [("draw anchors", 6), ("train", 3)],
    "salun": [("draw keep", 6), ("saliency", 4), ("train", 3)],
}


@pytest.fixture
def pipe(pipe: Any) -> Any:
    """The pipeline with a denoiser small enough to be trained in a test; its blocks are of the same kinds."""
    torch.manual_seed(2)
    config = {**pipe.unet.config, "block_out_channels": (16, 32), "norm_num_groups": 8}
    pipe.unet = UNet2DConditionModel.from_config(config).eval()
    with torch.no_grad():  # the text shall count, as it does for a trained denoiser
        for module in attention.cross_attentions(pipe.unet).values():
            module.to_out[0].weight.mul_(20)
    return pipe


def changed(built: dict[str, torch.Tensor], unet: Any) -> set[str]:
    state = unet.state_dict()
    return {key for key, tensor in built.items() if not torch.equal(tensor, state[key])}


@pytest.mark.parametrize("name", CASES)
def test_a_build_leaves_the_pipeline_as_it_was_and_fits_it(pipe: Any, name: str) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    asked = [p.requires_grad for p in pipe.unet.parameters()]
    built = defenses.build(name, pipe, CASES[name], Painter().context())
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert [p.requires_grad for p in pipe.unet.parameters()] == asked
    assert not any(m._forward_hooks or m._backward_hooks for m in pipe.unet.modules())
    assert changed(built, pipe.unet)
    assert {t.dtype for t in built.values()} == {torch.float32}
    assert not any(t.requires_grad for t in built.values())
    defense = defenses.load(name, pipe, CASES[name], built)
    assert isinstance(defense, UnetDelta)
    defense.attach(pipe)
    defense.detach(pipe)


@pytest.mark.parametrize("name", CASES)
def test_a_build_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, pipe: Any, name: str) -> None:
    whole = defenses.build(name, pipe, CASES[name], Painter().context())
    for stop in STOPS[name]:
        folder = tmp_path / stop[0]
        with pytest.raises(StoppedError):
            defenses.build(name, pipe, CASES[name], Painter(stop_at=stop).context(folder))
        torch.manual_seed(1234)
        resumed = defenses.build(name, pipe, CASES[name], Painter().context(folder))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[k], whole[k]) for k in whole), stop


@pytest.mark.parametrize("name", CASES)
def test_without_steps_the_weights_stay(pipe: Any, name: str) -> None:
    built = defenses.build(name, pipe, CASES[name] | {"steps": 0}, Painter().context())
    assert built
    assert not changed(built, pipe.unet)


@pytest.mark.parametrize("name", CASES)
def test_another_seed_gives_other_weights(pipe: Any, name: str) -> None:
    one, other = (defenses.build(name, pipe, CASES[name] | {"seed": s}, Painter().context()) for s in (0, 1))
    assert any(not torch.equal(one[k], other[k]) for k in one)


def the_loss(name: str, pipe: Any, student: Any, settings: Any) -> Any:
    """What the build minimised, for another student."""
    if name == "esd":
        return esd.erasing_loss(pipe, student, settings)
    if name == "ca":
        seeds, texts = range(6), [settings.anchors[i % 2] for i in range(6)]
        latents = data.latents(pipe, Painter().context(), "anchors", texts, seeds, "art")
        return ca.ablating_loss(pipe, student, settings, settings.anchors, latents)
    return salun.forgetting_loss(pipe, student, settings, salun.Sets(pipe, settings, Painter().context()))


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls(pipe: Any, name: str) -> None:
    """The trained denoiser against the untrained one, at the same images, noise and timesteps."""
    params = CASES[name] | {"steps": 30, "lr": 3e-3}
    params |= {"esd": {"lr": 3e-4}, "ca": {"prior": 0.0, "train": "full"}, "salun": {"alpha": 0.0, "share": 1.0}}[name]
    built = defenses.build(name, pipe, params, Painter().context())
    settings = parse({"esd": esd.EsdParams, "ca": ca.CaParams, "salun": salun.SalunParams}[name], params)
    untrained, trained = loop.student_of(pipe.unet), loop.student_of(pipe.unet)
    trained.load_state_dict(built, strict=False)
    with torch.no_grad():
        before, after = (
            sum(float(the_loss(name, pipe, student, settings)(i, loop.step_generator(9, i))) for i in range(8))
            for student in (untrained, trained)
        )
    assert after < 0.7 * before


@pytest.mark.parametrize("name", CASES)
def test_loading_without_what_was_built_is_refused(pipe: Any, name: str) -> None:
    with pytest.raises(ValueError, match="artefact"):
        defenses.load(name, pipe, CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_a_text_that_the_guard_refuses_builds_nothing(pipe: Any, name: str) -> None:
    key = {"esd": "erase", "ca": "erase", "salun": "forget"}[name]
    painter = Painter()
    with pytest.raises(UserError, match="may not be built from"):
        defenses.build(name, pipe, CASES[name] | {key: ["teen", "teen"], "concept": "nudity"}, painter.context())
    assert painter.losses() == []


@pytest.mark.parametrize("name", ["ca", "salun"])
def test_nobody_to_draw_the_images_is_an_error_before_anything_is_trained(pipe: Any, name: str) -> None:
    with pytest.raises(UserError, match="harness build"):
        defenses.build(name, pipe, CASES[name], BuildContext())


@pytest.mark.parametrize("name", CASES)
def test_an_estimate_counts_the_images_and_steps_of_the_build(pipe: Any, name: str) -> None:
    painter, calls = Painter(), []
    pipe.unet.register_forward_hook(lambda m, a, o: calls.append(len(a[0])))
    defenses.build(name, pipe, CASES[name], painter.context())  # the student is a copy, with the hook
    said = defenses.estimate(name, CASES[name])
    assert said.images == len(painter.asked)
    assert said.steps == len(painter.losses())
    # Calls without their backward passes; ESD's half a sampling is an average.
    assert said.denoiser_calls >= sum(calls) / (2 if name == "esd" else 1)
    assert said.denoiser_calls <= 4 * sum(calls)
    assert defenses.estimate(name, CASES[name] | {"weights": "x.pt"}).denoiser_calls == 0


# --- ESD ---


@pytest.fixture(scope="module")
def unet14() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


@pytest.mark.parametrize(
    ("name", "tensors", "millions"),
    [
        ("noxattn", 598, 813.5),
        ("xattn", 80, 43.96),
        ("selfattn", 80, 49.58),
        ("full", 686, 859.52),
        ("esd-u", 388, 815.4),
        ("esd-x", 80, 43.96),
        ("esd-x-strict", 32, 19.17),
    ],
)
def test_esds_parts_are_the_published_ones(unet14: Any, name: Any, tensors: int, millions: float) -> None:
    wanted = esd.part(unet14, name)
    chosen = [p for n, p in unet14.named_parameters() if wanted(n)]
    assert sum(p.numel() for p in chosen) / 1e6 == pytest.approx(millions, rel=5e-4)
    assert len(chosen) == tensors


@pytest.mark.parametrize("name", ["noxattn", "xattn", "selfattn", "esd-u", "esd-x"])
def test_esd_trains_exactly_its_part(pipe: Any, name: str) -> None:
    built = esd.build(pipe, ESD | {"train": name}, BuildContext())
    wanted = esd.part(pipe.unet, name)
    assert set(built) == {n for n, _ in pipe.unet.named_parameters() if wanted(n)}
    unmoved = set(built) - changed(built, pipe.unet)
    assert all(n.endswith("to_k.bias") for n in unmoved), unmoved


def test_esds_variants_ask_for_the_same_with_their_own_eta() -> None:
    empty, conditioned = torch.randn(2, 3), torch.randn(2, 3)
    original = parse(esd.EsdParams, {"erase": ["x"], "eta": 1.0})
    current = parse(esd.EsdParams, {"erase": ["x"], "variant": "current", "eta": 2.0})
    one, other = (esd.negated(empty, conditioned, s) for s in (original, current))
    assert torch.allclose(one, 2 * empty - conditioned)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("variant", ["original", "current"])
def test_esds_loss_is_the_papers_written_out(pipe: Any, variant: str) -> None:
    """At a student equal to the teacher the loss is (1 + eta)^2 |e(c) - e(0)|^2 in the original's terms."""
    settings = parse(esd.EsdParams, ESD | {"variant": variant, "eta": 1.0 if variant == "original" else 2.0})
    student = loop.student_of(pipe.unet)
    seen: list[tuple[Any, ...]] = []
    hook = pipe.unet.register_forward_hook(lambda m, a, o: seen.append((a[0], a[1])))
    loss = esd.erasing_loss(pipe, student, settings)(0, loop.step_generator(0, 0))
    hook.remove()
    latents, timesteps = seen[-1]
    states = losses.text_states(pipe, ["star", ""], "art")
    with torch.no_grad():
        with_text, without = (losses.predict(pipe.unet, latents, timesteps, s[None]) for s in states)
    assert float(loss.detach()) == pytest.approx(float((2 * (with_text - without)).square().mean()), rel=1e-3)


def test_a_timestep_lies_in_the_stretch_of_its_step() -> None:
    generator = torch.Generator().manual_seed(0)
    for stop in range(50):
        levels = [losses.level(1000, 50, stop, generator) for _ in range(40)]
        assert 20 * (49 - stop) <= min(levels)
        assert max(levels) < 20 * (50 - stop)
        assert len(set(levels)) > 5


# --- CA ---


@pytest.mark.parametrize(("part", "count"), [("cross-attention", 14), ("attention", 70), ("full", None)])
def test_ca_trains_exactly_its_part(pipe: Any, part: str, count: int | None) -> None:
    built = ca.build(pipe, CA | {"train": part}, Painter().context())
    assert len(built) == (count or len(pipe.unet.state_dict()))
    if part == "cross-attention":
        assert all(k.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for k in built)


def test_cas_attention_part_of_sd14_is_all_projections(unet14: Any) -> None:

    pattern = re.compile(ca._PARTS["attention"])
    chosen = [p for n, p in unet14.named_parameters() if pattern.search(n)]
    assert len(chosen) == 160
    assert sum(p.numel() for p in chosen) / 1e6 == pytest.approx(93.54, rel=1e-3)


def test_ca_puts_the_target_in_the_anchors_place_or_by_its_templates() -> None:
    placed = parse(ca.CaParams, CA | {"erase": ["star", "ring"]})
    assert ca.target_texts(placed, "a red square, squares") == ["a red star, squares", "a red ring, squares"]
    templates = ["{anchor} by {target}", "{target}: {anchor}"]
    styled = parse(ca.CaParams, {"erase": ["X"], "anchors": ["a lake"], "templates": templates})
    assert ca.target_texts(styled, "a lake") == ["a lake by X", "X: a lake"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"anchors": ["a lake"]}, "lacks the word 'square'"),
        ({"replace": None, "templates": ["{target}"]}, "lacks {anchor} or {target}"),
        ({"anchors": []}, "anchors"),
    ],
)
def test_ca_refuses_texts_that_the_target_cannot_be_put_into(params: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(ca.CaParams, CA | params)


def test_ca_reads_anchor_texts_from_a_file_and_leaves_out_what_the_guard_refuses(tmp_path: Path, pipe: Any) -> None:
    file = tmp_path / "people.txt"
    file.write_text("a square\n\na boy with a square\na red square\n")
    assert defenses.files({"anchors": str(file)}) == [file]
    painter = Painter()
    ca.build(pipe, CA | {"anchors": str(file), "concept": "nudity", "images": 4, "steps": 0}, painter.context())
    assert [text for text, _ in painter.asked] == ["a square", "a red square"] * 2
    file.write_text("a boy\n")
    with pytest.raises(UserError, match="no anchor texts"):
        ca.build(pipe, CA | {"anchors": str(file), "concept": "nudity"}, painter.context())
    with pytest.raises(UserError, match="cannot be read"):
        ca.build(pipe, CA | {"anchors": str(tmp_path / "gone.txt")}, painter.context())


def test_ca_at_the_anchor_itself_has_nothing_to_learn(pipe: Any) -> None:
    painter = Painter()
    ca.build(pipe, CA | {"erase": ["square"], "prior": 0.0, "lr": 1e-6}, painter.context())
    assert painter.losses() == [0.0] * 4


# --- SalUn ---


def test_the_most_salient_are_the_largest_of_all_together() -> None:
    generator = torch.Generator().manual_seed(0)
    amounts = {"a": torch.rand(30, 7, generator=generator), "b": torch.rand(91, generator=generator) * 3}
    for share in (0.0, 0.01, 0.3, 0.5, 0.9, 1.0):
        masks = salun.most_salient(amounts, share)
        flat, chosen = (torch.cat([d[k].flatten() for k in ("a", "b")]) for d in (amounts, masks))
        expected = flat >= flat.sort(descending=True).values[round(share * 301) - 1] if share else flat < 0
        assert torch.equal(chosen, expected), share
    assert {k: m.shape for k, m in masks.items()} == {k: v.shape for k, v in amounts.items()}


def test_amounts_that_are_equal_are_in_together() -> None:
    masks = salun.most_salient({"a": torch.tensor([0.0, 0.0, 2.0, 1.0])}, 0.5)
    assert masks["a"].tolist() == [False, False, True, True]
    assert salun.most_salient({"a": torch.zeros(4)}, 0.5)["a"].tolist() == [True] * 4


def test_salun_changes_only_its_share_of_the_weights(pipe: Any) -> None:
    built = salun.build(pipe, SALUN | {"share": 0.2}, Painter().context())
    state = pipe.unet.state_dict()
    moved = sum(int((built[k] != state[k]).sum()) for k in built)
    total = sum(v.numel() for v in state.values())
    assert 0.1 * total < moved <= 0.2 * total + 1
    none = salun.build(pipe, SALUN | {"share": 0.0}, Painter().context())
    assert not changed(none, pipe.unet)


def test_saliency_sums_signed_gradients_of_the_guided_prediction(pipe: Any) -> None:
    settings = parse(salun.SalunParams, SALUN)
    sets = salun.Sets(pipe, settings, Painter().context())
    student = loop.student_of(pipe.unet)
    parameters = loop.only_trainable(student, lambda name: True)
    masks = salun.saliency(pipe, student, parameters, settings, sets, BuildContext())
    process = losses.NoiseProcess(pipe)
    states = losses.text_states(pipe, ["red star", "blue star", ""], "art")
    plain = loop.student_of(pipe.unet).requires_grad_(True)
    for start in range(0, 6, 2):
        generator = loop.step_generator(0, -1 - start)
        clean = sets.forget[start : start + 2]
        noise = process.noise(clean.shape, generator)
        timesteps = process.random_timesteps(2, generator)
        noised = process.noised(clean, noise, timesteps)
        with_text = plain(noised, timesteps, states[:2]).sample
        without = plain(noised, timesteps, states[2:].expand(2, -1, -1)).sample
        (-((noise - (8.5 * with_text - 7.5 * without)) ** 2).mean()).backward()
    amounts = torch.cat([p.grad.abs().flatten() for p in plain.parameters()])
    chosen = torch.cat([masks[n].flatten() for n, _ in plain.named_parameters()])
    assert float(chosen.float().mean()) == pytest.approx(0.5, abs=1e-3)
    # Rounding decides at the threshold only.
    assert float(amounts[chosen].min()) == pytest.approx(float(amounts[~chosen].max()), rel=0.05)


def test_salun_goes_through_all_images_in_each_epoch() -> None:
    settings = parse(salun.SalunParams, SALUN)
    for epoch in range(3):
        order = [salun._shuffled(settings, 6 * epoch + i, 0) for i in range(6)]
        assert sorted(order) == list(range(6))
    orders = {tuple(salun._shuffled(settings, 6 * e + i, s) for i in range(6)) for e in range(4) for s in range(2)}
    assert len(orders) > 4


def test_salun_needs_a_text_to_keep_for_each_to_forget() -> None:
    with pytest.raises(UserError, match="2 texts to forget need as many to keep, not 1"):
        parse(salun.SalunParams, SALUN | {"keep": ["ring"]})


def test_saluns_images_are_of_its_texts_with_seeds_of_their_own(pipe: Any) -> None:
    painter = Painter()
    salun.build(pipe, SALUN | {"steps": 0, "share": 0.0}, painter.context())
    assert [t for t, _ in painter.asked] == ["red star", "blue star"] * 3 + ["red ring", "blue ring"] * 3
    assert len({s for _, s in painter.asked}) == 12
