"""GLoCE on small real models: its blend against a loop over pixels, its limits, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from harness import defenses
from harness.defenses import gloce
from harness.defenses.base import BuildContext, BuildStep
from harness.errors import UserError

PARAMS = {
    "targets": ["star", "red star"], "surrogate": "ring", "neutral": "art", "anchors": ["square", "blue"],
    "target_rank": 2, "surrogate_rank": 1, "gate_rank": 2, "threshold": 1.5, "images": 2,
    "first_call": 1, "last_call": 2, "steps": 4, "batch": 1,
}  # fmt: skip
PROMPTS = ["a red star", "blue square"]


@pytest.fixture
def built(pipe: Any) -> dict[str, torch.Tensor]:
    return gloce.build(pipe, PARAMS, BuildContext())


def open_always(tensors: dict[str, torch.Tensor], opened: bool = True) -> dict[str, torch.Tensor]:
    """The same edits with gates that are open, or shut, whatever they see."""
    centre = -1.0 if opened else 2.0
    return {k: torch.full_like(v, centre) if k.endswith("imp_center") else v for k, v in tensors.items()}


def drawn(pipe: Any, draw: Any, defense: Any, **extra: Any) -> torch.Tensor:
    defense.attach(pipe)
    images: torch.Tensor = draw(pipe, PROMPTS, **defense.begin(PROMPTS), **extra)
    defense.detach(pipe)
    return images


def test_one_layer_blends_pixel_by_pixel_with_the_target_whose_gate_is_open_widest() -> None:
    torch.manual_seed(0)
    n, d = 2, 6
    tensors = {
        "lora_update.weight": torch.randn(n, d, 3), "lora_degen.weight": torch.randn(n, d, 3),
        "bias.weight": torch.randn(1, n, d), "debias.weight": torch.randn(1, n, d),
        "selector.select_weight.weight": torch.randn(n, d, 1) / d,
        "selector.select_mean_diff.weight": torch.randn(n, d),
        "selector.imp_center": torch.tensor([0.02, 0.03]), "selector.imp_slope": torch.tensor([9.0, 20.0]),
    }  # fmt: skip
    x = torch.randn(2, 4, d)
    got = gloce.Layer(tensors, strength=3.0)(x)
    chosen = set()
    for image in range(2):
        for pixel in range(4):
            v, gates = x[image, pixel], []
            for i in range(n):
                u = v - tensors["selector.select_mean_diff.weight"][i]
                score = ((tensors["selector.select_weight.weight"][i].T @ (u / u.norm())) ** 2).sum()
                centre, slope = tensors["selector.imp_center"][i], tensors["selector.imp_slope"][i]
                gates.append(1 / (1 + torch.exp(-slope * (score - centre))))
            i = int(torch.stack(gates).argmax())
            chosen.add(i)
            away = tensors["lora_update.weight"][i].T @ (v - tensors["debias.weight"][0, i])
            edited = 3.0 * (tensors["bias.weight"][0, i] + tensors["lora_degen.weight"][i] @ away)
            assert torch.allclose(got[image, pixel], (1 - gates[i]) * v + gates[i] * edited, atol=1e-5)
    assert chosen == {0, 1}


def test_the_files_names_and_shapes_are_the_released_ones(built: dict) -> None:
    key = "lora_gloce_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    shapes = {name.removeprefix(key + "."): tuple(t.shape) for name, t in built.items() if name.startswith(key)}
    assert shapes == {
        "lora_update.weight": (2, 128, 1), "lora_degen.weight": (2, 128, 1),
        "bias.weight": (1, 2, 128), "debias.weight": (1, 2, 128),
        "selector.select_weight.weight": (2, 128, 2), "selector.select_mean_diff.weight": (2, 128),
        "selector.imp_center": (2,), "selector.imp_slope": (2,),
    }  # fmt: skip
    assert len(built) == 7 * 8
    assert {t.dtype for t in built.values()} == {torch.float32}


def test_gates_that_stay_shut_leave_images_bit_for_bit(pipe: Any, draw: Any, built: dict) -> None:
    before = draw(pipe, PROMPTS)
    shut = gloce.load(pipe, PARAMS, open_always(built, opened=False))
    assert torch.equal(before, drawn(pipe, draw, shut))
    assert not torch.equal(before, drawn(pipe, draw, gloce.load(pipe, PARAMS, open_always(built))))
    assert torch.equal(before, draw(pipe, PROMPTS))


def test_each_image_is_edited_from_the_same_call_on(pipe: Any, draw: Any, built: dict) -> None:
    """PNDM makes 5 calls for 4 steps; a count that went on would edit the second batch from another call."""
    before, never = draw(pipe, PROMPTS), gloce.load(pipe, {**PARAMS, "begin_call": 5}, open_always(built))
    assert torch.equal(before, drawn(pipe, draw, never))
    late = gloce.load(pipe, {**PARAMS, "begin_call": 3}, open_always(built))
    first, second = drawn(pipe, draw, late), drawn(pipe, draw, late)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_an_image_does_not_depend_on_its_batch_mates(pipe: Any, draw: Any, built: dict, guidance: float) -> None:
    defense = gloce.load(pipe, PARAMS, built)
    defense.attach(pipe)
    one = draw(pipe, [PROMPTS[0], "star"], **defense.begin(PROMPTS), guidance_scale=guidance)
    other = draw(pipe, [PROMPTS[0], "blue"], **defense.begin(PROMPTS), guidance_scale=guidance)
    defense.detach(pipe)
    assert torch.equal(one[0], other[0])


def test_building_leaves_the_pipeline_alone_and_tells_how_far_it_is(pipe: Any, draw: Any) -> None:
    before, told = draw(pipe, PROMPTS), []
    gloce.build(pipe, PARAMS, BuildContext(report=told.append))
    assert torch.equal(before, draw(pipe, PROMPTS))
    assert told[-1] == BuildStep("measure", 6, 6)
    assert [s.step for s in told] == sorted(s.step for s in told)


def test_a_build_that_was_stopped_gives_what_a_whole_one_gives(pipe: Any, built: dict, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: BuildStep) -> None:
        if step.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        gloce.build(pipe, PARAMS, BuildContext(folder=tmp_path, report=stop))
    assert list(tmp_path.iterdir())
    resumed = gloce.build(pipe, PARAMS, BuildContext(folder=tmp_path))
    assert resumed.keys() == built.keys()
    assert all(torch.equal(resumed[k], built[k]) for k in built)


def test_the_nearest_anchors_are_kept_and_those_that_name_the_target_are_none(pipe: Any) -> None:
    texts = ["red star", "a square", "blue ring", "star art"]
    settings = gloce.parse(gloce.GloceParams, {**PARAMS, "anchors": texts, "anchor_count": 1, "template": "red {}"})
    assert gloce.anchors(pipe, settings, "star") in (["red a square"], ["red blue ring"])
    assert gloce.anchors(pipe, settings, "blue rin") != ["red blue ring"]
    near = {text: _nearness(pipe, "red square", f"red {text}") for text in texts}
    assert gloce.anchors(pipe, settings, "square") == [
        f"red {max((t for t in texts if 'square' not in t), key=near.get)}"
    ]


def _nearness(pipe: Any, one: str, other: str) -> float:
    """The mean over eight positions of the cosine, by hand."""
    a, b = (pipe.encode_prompt(t, torch.device("cpu"), 1, False)[0][0, 1:9].detach().double() for t in (one, other))
    return float(torch.stack([(x @ y) / x.norm() / y.norm() for x, y in zip(a, b, strict=True)]).mean())


def released(built: dict, target: int, half: bool = False) -> dict[str, torch.Tensor]:
    """One target's file as the released code writes it."""
    own = {}
    for key, tensor in built.items():
        part = tensor[:, target : target + 1] if key.endswith("bias.weight") else tensor[target : target + 1]
        own[key] = part.half() if half else part.clone()
        own[key.partition(".")[0] + ".alpha"] = torch.tensor(1.0)
    return own


def test_a_folder_of_released_files_loads_as_one_defense(pipe: Any, draw: Any, built: dict, tmp_path: Path) -> None:
    for i, name in enumerate(("a_star", "b_red_star")):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file(released(built, i), tmp_path / name / "ckpt.safetensors", {"prompts": name})
    params = {**PARAMS, "weights": str(tmp_path)}
    read = defenses.build("gloce", pipe, params)
    whole = gloce.load(pipe, PARAMS, open_always(built))
    assert torch.equal(drawn(pipe, draw, gloce.load(pipe, params, open_always(read))), drawn(pipe, draw, whole))


def test_one_released_file_in_half_precision_loads(pipe: Any, built: dict, tmp_path: Path) -> None:
    safetensors.torch.save_file(released(built, 0, half=True), tmp_path / "ckpt.safetensors")
    read = defenses.build("gloce", pipe, {**PARAMS, "weights": str(tmp_path / "ckpt.safetensors")})
    assert read.keys() == built.keys()
    assert {t.dtype for t in read.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if "imp_slope" not in k}, "7 of 56 tensors are missing, such as"),
        (lambda t: {**t, "lora_gloce_x.bias.weight": torch.zeros(1)}, "'lora_gloce_x.bias.weight' is not one of"),
        (lambda t: {k: v[..., :-1] if "debias" in k else v for k, v in t.items()}, r"debias.weight' has shape \(1, 2,"),
        (lambda t: {k: v[:1] if "lora_degen" in k else v for k, v in t.items()}, r"lora_degen.weight' has shape \(1,"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(pipe: Any, built: dict, change: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        gloce.load(pipe, PARAMS, change(built))


def test_an_empty_folder_and_a_missing_file_are_named(pipe: Any, tmp_path: Path) -> None:
    for weights in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(UserError, match=str(weights)):
            defenses.build("gloce", pipe, {**PARAMS, "weights": str(weights)})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"first_call": 3}, "last_call 2 is before first_call 3"),
        ({"scheduler": "LMSDiscretScheduler"}, "no scheduler 'LMSDiscretScheduler'; did you mean 'LMSDiscreteSched"),
        ({"targets": ["a girl"]}, "age-term"),
        ({"template": "a photo"}, "parameter 'template'"),
    ],
)
def test_what_cannot_be_built_is_refused(pipe: Any, params: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        gloce.build(pipe, {**PARAMS, **params}, BuildContext())


def test_measuring_with_another_scheduler_differs(pipe: Any, built: dict) -> None:
    other = gloce.build(pipe, {**PARAMS, "scheduler": "DDIMScheduler"}, BuildContext())
    assert any(not torch.equal(other[k], built[k]) for k in built)


def test_attaching_twice_is_an_error_and_without_an_artefact_nothing_loads(pipe: Any, built: dict) -> None:
    defense = gloce.load(pipe, PARAMS, built)
    defense.attach(pipe)
    with pytest.raises(RuntimeError, match="attached already"):
        defense.attach(pipe)
    defense.detach(pipe)
    with pytest.raises(ValueError, match="artefact"):
        gloce.load(pipe, PARAMS, None)


def test_a_file_of_sd14s_shape_fits_sd14_and_no_other(sd14: Any, pipe: Any, built: dict) -> None:
    widths = {n: m.weight.shape[0] for n, m in sd14.unet.named_modules() if n.endswith(gloce.OUTPUTS)}
    assert len(widths) == 16
    sizes = {"n": 1, "1": 1, "r": 2, "g": 1}
    file = {
        f"{gloce.PREFIX}{name.replace('.', '_')}.{part}": torch.zeros([{**sizes, "d": d}[s] for s in shape.split()])
        for name, d in widths.items()
        for part, shape in gloce._SHAPES.items()
    }
    gloce.check_artefact(file, sd14)
    with pytest.raises(UserError, match="is not one of this UNet's edits"):
        gloce.check_artefact(file, pipe)
    with pytest.raises(UserError, match="is not one of this UNet's edits"):
        gloce.check_artefact(built, sd14)


def test_an_estimate_counts_both_halves_of_guidance() -> None:
    assert gloce.estimate(PARAMS).denoiser_calls == 2 * 6 * 2 * 3
