"""Backbones of every class: what their cards say, how they are called, and that a row's image is its own."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_backbones as tiny
import torch
from desk import Desk
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.defenses.base import Defense
from harness.errors import UserError
from harness.models import text_to_image, weights
from harness.models.text_to_image import Canvas, Request
from harness.pipeline import plan, request
from harness.pipeline.stages.images import decode

TINY = tuple(tiny.SAMPLED)
PUBLISHED = {"sdxl": "tiny-sdxl", "sd3": "tiny-sd3", "flux": "tiny-flux", "flux-schnell": "tiny-flux"}
PROMPTS = ("a red star", "a blue square left of a ring", "", "a green cross on a black background", "a red star")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card root with the weights of every small pipeline."""
    folder = tmp_path_factory.mktemp("backbones")
    for name in TINY:
        tiny.save(folder, name)
    return folder


@pytest.fixture(scope="module", params=TINY)
def loaded(request: pytest.FixtureRequest, root: Path) -> tuple[Any, BackboneCard]:
    card = tiny.card(root, request.param)
    return text_to_image.load(card), card


def requests() -> list[Request]:
    return [Request(prompt, 2**63 + i, "nudity") for i, prompt in enumerate(PROMPTS)]


def draw(pipe: Any, card: BackboneCard, asked: list[Request], defense: Defense | None = None) -> list[np.ndarray]:
    canvas = Canvas(card.guidance, card.width, card.height)
    further = text_to_image.options(card)
    return text_to_image.sample(pipe, defense or Defense(), asked, canvas, card.steps, card.micro_batch, further)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other))


def published(name: str) -> BackboneCard:
    return load_card(BackboneCard, name, card_roots())


# What the cards say


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_sampling_is_the_pipelines_own_default(name: str) -> None:
    card = published(name)
    taken = inspect.signature(text_to_image._class(card, card.pipeline).__call__).parameters
    assert card.steps == taken["num_inference_steps"].default
    assert card.guidance == taken["guidance_scale"].default
    if "max_sequence_length" in taken:
        assert card.max_sequence_length == taken["max_sequence_length"].default
    if "true_cfg_scale" in taken:
        assert card.true_cfg == taken["true_cfg_scale"].default == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_diffusers_takes_what_the_cards_say(name: str) -> None:
    card = published(name)
    cls = text_to_image._class(card, card.pipeline)
    text_to_image._check(card, cls)
    assert {"prompt", "generator", "width", "height", "output_type"} <= set(inspect.signature(cls.__call__).parameters)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_of_a_card_are_all_that_loading_needs(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository as the card lists it, with small weights under the published names and key names."""
    card, small = published(name), tiny.card(root, PUBLISHED[name])
    snapshot = tiny.publish(root / "weights" / small.name, card, tmp_path)
    assert {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()} == set(card.files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert weights.missing(*card.weights()) == []
    as_stored = card.model_copy(update={"dtype": "float32"})
    pipe, plain = text_to_image.load(as_stored), text_to_image.load(small)
    for part, module in plain.components.items():
        if isinstance(module, torch.nn.Module):
            found = pipe.components[part].state_dict()
            assert all(torch.equal(value, found[key]) for key, value in module.state_dict().items()), part
    held = text_to_image.load(card)
    assert {held.components[p].dtype for p in ("vae", "text_encoder")} == {getattr(torch, card.dtype)}


def test_a_value_out_of_range_is_refused(root: Path) -> None:
    with pytest.raises(ValidationError) as refused:
        tiny.card(root, "tiny-flux", true_cfg=0.5)
    (fault,) = refused.value.errors()
    assert (fault["loc"], fault["type"], fault["ctx"]) == (("true_cfg",), "greater_than_equal", {"ge": 1.0})


# Loading


def test_weights_that_are_not_here_are_named(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"backbone flux: weights of black-forest-labs/FLUX.1-dev .*fetch weights flux"):
        text_to_image.load(published("flux"))
    absent = tiny.card(root, "tiny-sd3", source="package:weights/none")
    with pytest.raises(UserError, match=r"backbone tiny-sd3: weights of .*weights/none") as refused:
        text_to_image.load(absent)
    assert "fetch" not in str(refused.value)


def _less(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without one of them."""
    return dict(list(tensors.items())[1:])


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("change", [_less, _renamed])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tiny-sdxl", "text_encoder"), ("tiny-sdxl", "text_encoder_2"), ("tiny-sdxl", "unet"), ("tiny-sdxl", "vae"),
        ("tiny-sd3", "text_encoder_3"), ("tiny-flux", "transformer"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fill_their_model_are_refused(
    root: Path, tmp_path: Path, name: str, part: str, change: Any
) -> None:
    """transformers would draw random numbers for them and go on."""
    shutil.copytree(root / "weights" / name, tmp_path / "weights" / name)
    (file,) = (tmp_path / "weights" / name / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"backbone {name}: the weights of .* lack \d+ tensors? of its {part}, such"):
        text_to_image.load(tiny.card(tmp_path, name))


def test_loading_leaves_transformers_as_it_was(root: Path) -> None:
    before = vars(PreTrainedModel)["from_pretrained"]
    text_to_image.load(tiny.card(root, "tiny-sd3"))
    assert vars(PreTrainedModel)["from_pretrained"] is before


def test_a_file_that_is_cut_short_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "weights/tiny-sdxl", tmp_path / "weights/tiny-sdxl")
    file = tmp_path / "weights/tiny-sdxl/text_encoder/model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match="backbone tiny-sdxl: weights of .* cannot be read"):
        text_to_image.load(tiny.card(tmp_path, "tiny-sdxl"))


def test_a_scheduler_that_cannot_be_repeated_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="DPMSolverSDEScheduler draws noise that no seed decides"):
        text_to_image.load(tiny.card(root, "tiny-sdxl", scheduler="DPMSolverSDEScheduler"))


def test_an_unknown_class_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(UserError, match=r"no class 'FluxPipelin'.*did you mean 'FluxPipeline'"):
        text_to_image.load(tiny.card(root, "tiny-flux", pipeline="FluxPipelin"))


@pytest.mark.parametrize(
    ("name", "changed"),
    [("tiny-sdxl", {"max_sequence_length": 77}), ("tiny-sdxl", {"true_cfg": 2}), ("tiny-sd3", {"true_cfg": 2})],
)
def test_what_a_class_does_not_take_is_refused(root: Path, name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"backbone {name}: .*Pipeline takes no {next(iter(changed))}"):
        text_to_image.load(tiny.card(root, name, **changed))


def test_no_watermark_whatever_is_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"
    monkeypatch.setattr(f"{module}.is_invisible_watermark_available", lambda: True)
    assert text_to_image.load(tiny.card(root, "tiny-sdxl")).watermark is None


# A row's image is its own


def test_an_image_does_not_depend_on_batch_mates_or_order(loaded: tuple[Any, BackboneCard]) -> None:
    pipe, card = loaded
    asked = requests()
    together = draw(pipe, card, asked)
    assert [p.shape for p in together] == [(32, 24, 3)] * 5
    assert {p.dtype for p in together} == {np.dtype(np.uint8)}
    alone = [draw(pipe, card, [request])[0] for request in asked]
    backwards = draw(pipe, card, asked[::-1])[::-1]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(together, alone, backwards, strict=True))


def test_seed_prompt_and_guidance_each_count(loaded: tuple[Any, BackboneCard]) -> None:
    pipe, card = loaded
    first, *_, last = draw(pipe, card, requests())
    assert not same(first, last)  # the same prompt with another seed
    request = requests()[0]
    assert not same(first, draw(pipe, card, [request._replace(prompt=PROMPTS[1])])[0])
    assert not same(first, draw(pipe, card.model_copy(update={"guidance": card.guidance + 4}), [request])[0])


def test_another_micro_batch_changes_a_level_at_most(loaded: tuple[Any, BackboneCard]) -> None:
    pipe, card = loaded
    three, one = (draw(pipe, card.model_copy(update={"micro_batch": size}), requests()) for size in (3, 1))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(three, one, strict=True))


def test_an_image_is_what_the_pipeline_draws_by_itself(loaded: tuple[Any, BackboneCard]) -> None:
    pipe, card = loaded
    request = requests()[1]
    length = {} if card.max_sequence_length is None else {"max_sequence_length": card.max_sequence_length}
    plain = pipe(
        request.prompt, height=32, width=24, num_inference_steps=2, guidance_scale=card.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed), output_type="pil", **length,
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(plain).astype(int) - draw(pipe, card, [request])[0]).max() <= 1


def test_a_loaded_backbone_draws_as_the_last_one(root: Path, loaded: tuple[Any, BackboneCard]) -> None:
    pipe, card = loaded
    assert same(draw(text_to_image.load(card), card, requests())[0], draw(pipe, card, requests())[0])


# Each class is called as it means it


class Calls:
    """Notes how often a network runs, and its keyword arguments."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seen: list[dict[str, Any]] = []
        self.texts: list[int] = []
        self._handle = module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append(kwargs)
        if args and isinstance(args[0], torch.Tensor):
            self.texts.append(args[0].shape[-1])

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def test_guidance_of_flux_is_an_input_of_the_network(root: Path) -> None:
    card = tiny.card(root, "tiny-flux", guidance=2.5)
    pipe = text_to_image.load(card)
    with Calls(pipe.transformer) as calls:
        draw(pipe, card, requests()[:1])
    assert len(calls.seen) == card.steps  # one prediction a step: no guidance away from a second text
    assert all(call["guidance"].tolist() == [2.5] * card.micro_batch for call in calls.seen)
    assert all(call["hidden_states"].shape[0] == card.micro_batch for call in calls.seen)


def test_true_guidance_of_flux_leads_away_from_the_empty_text(root: Path) -> None:
    card = tiny.card(root, "tiny-flux", true_cfg=4)
    pipe = text_to_image.load(card)
    with Calls(pipe.transformer) as calls:
        drawn = draw(pipe, card, requests()[:1])[0]
    assert len(calls.seen) == 2 * card.steps
    request = requests()[0]
    plain = pipe(
        request.prompt, negative_prompt="", true_cfg_scale=4.0, height=32, width=24, num_inference_steps=2,
        guidance_scale=3.5, max_sequence_length=20, generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pil",
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(plain).astype(int) - drawn).max() <= 1
    assert not same(drawn, draw(pipe, tiny.card(root, "tiny-flux"), [request])[0])


@pytest.mark.parametrize(("name", "tower"), [("tiny-sd3", "text_encoder_3"), ("tiny-flux", "text_encoder_2")])
def test_the_t5_encoder_sees_as_many_tokens_as_the_card_says(root: Path, name: str, tower: str) -> None:
    card = tiny.card(root, name, max_sequence_length=9)
    pipe = text_to_image.load(card)
    with Calls(pipe.components[tower]) as calls:
        draw(pipe, card, requests()[:1])
    assert set(calls.texts) == {9}


@pytest.mark.parametrize(
    ("name", "towers"),
    [("tiny-sdxl", 2), ("tiny-sd3", 3), ("tiny-flux", 2)],
)
def test_every_text_encoder_reads_the_prompt(root: Path, name: str, towers: int) -> None:
    pipe = text_to_image.load(tiny.card(root, name))
    card = tiny.card(root, name)
    before = draw(pipe, card, requests()[:1])[0]
    found = [part for part in pipe.components if part.startswith("text_encoder")]
    assert len(found) == towers
    for part in found:
        for parameter in pipe.components[part].parameters():
            keep = parameter.detach().clone()
            parameter.data.mul_(3)
            break  # the token embeddings
        assert not same(before, draw(pipe, card, requests()[:1])[0]), part
        parameter.data.copy_(keep)
    assert same(before, draw(pipe, card, requests()[:1])[0])


def test_a_size_that_flux_would_round_down_is_refused(root: Path) -> None:
    card = tiny.card(root, "tiny-flux", width=26)
    with pytest.raises(ValueError, match=r"FluxPipeline draws \(32, 24, 3\) where \(32, 26, 3\) was asked for"):
        draw(text_to_image.load(card), card, requests()[:1])


def test_the_autoencoder_of_sdxl_decodes_in_float32_where_the_rest_is_float16(root: Path) -> None:
    card = tiny.card(root, "tiny-sdxl", dtype="float16")
    pipe = text_to_image.load(card)
    assert pipe.vae.config.force_upcast
    decoded: list[torch.dtype] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(args[0].dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        first, second = (draw(pipe, card, requests()) for _ in range(2))
    assert set(decoded) == {torch.float32}
    assert {pipe.vae.dtype, pipe.unet.dtype} == {torch.float16}  # back again, without loss
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


# Defenses


class Away(Defense):
    """A negative prompt of a test's own."""

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {"negative_prompt": ["a blue square"] * len(prompts)}


@pytest.mark.parametrize(("name", "changed"), [("tiny-sdxl", {}), ("tiny-sd3", {}), ("tiny-flux", {"true_cfg": 4})])
def test_a_negative_prompt_leads_away(root: Path, name: str, changed: dict[str, Any]) -> None:
    card = tiny.card(root, name, **changed)
    pipe = text_to_image.load(card)
    method = defenses.load("negative_prompt", pipe, {"phrases": ["a blue square"]})
    method.attach(pipe)
    defended = draw(pipe, card, requests(), method)
    plain = draw(pipe, card, requests())
    assert all(same(a, b) for a, b in zip(defended, draw(pipe, card, requests(), Away()), strict=True))
    assert not any(same(a, b) for a, b in zip(defended, plain, strict=True))


def works(root: Path, defense: str, backbone: BackboneCard) -> bool:
    return defenses.works(load_card(DefenseCard, defense, card_roots()), backbone)


@pytest.mark.parametrize("name", ["sd-1-4", "sd-1-5", "shapes", *PUBLISHED])
def test_which_defenses_a_backbone_takes(root: Path, name: str) -> None:
    card = published(name)
    unet = card.pipeline == "StableDiffusionPipeline"
    assert works(root, "none", card)
    assert works(root, "sd-np", card) == (not name.startswith("flux"))
    assert [works(root, d, card) for d in ("uce", "rece", "sld-max")] == [unet] * 3


def test_a_distilled_backbone_reads_a_negative_prompt_only_with_true_guidance(root: Path) -> None:
    assert not works(root, "sd-np", tiny.card(root, "tiny-flux"))
    assert works(root, "sd-np", tiny.card(root, "tiny-flux", true_cfg=2))
    assert not works(root, "rece", tiny.card(root, "tiny-flux", true_cfg=2))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with a benchmark, SDXL at the shapes world's own size, and FLUX at another."""
    made = Desk(tmp_path_factory.mktemp("desk"))
    made.bench("ten")
    made.profile()
    for name in ("tiny-sdxl", "tiny-flux"):
        tiny.save(made.cards, name)
        width = 32 if name == "tiny-sdxl" else 24
        tiny.declare(made.cards, tiny.card(made.cards, name, width=width))
    return made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--defense", "rece", "--backbone", "tiny-sdxl"), "defense 'rece' does not work with backbone 'tiny-sdxl'"),
        (("--defense", "sd-np", "--backbone", "tiny-flux"), "needs a negative prompt"),
        (
            ("--defense", "uce", "--regen", "resafe:backbone=tiny-flux:defended=true"),
            "defense 'uce' does not work with backbone 'tiny-flux'",
        ),
    ],
)
def test_a_defense_that_cannot_be_attached_is_refused_before_anything_runs(
    desk: Desk, words: tuple[str, ...], said: str
) -> None:
    done = desk.run("eval", *words, "--bench", "ten", "--profile", "small", "--executor", "inline", store="refused")
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not desk.shards("refused")


def test_all_defenses_are_those_that_work_with_the_backbone(desk: Desk) -> None:
    asked = request.Request(defenses=("all",), benches=("ten",), profile="small", backbone="tiny-sdxl")
    chosen = {card.name for card in plan.choose(asked, card_roots(desk.cards)).defenses}
    assert {"none", "sd-np"} <= chosen
    assert not {"rece", "uce", "sld-max"} & chosen
    named = request.Request(defenses=("all", "rece"), benches=("ten",), profile="small", backbone="tiny-sdxl")
    assert "rece" in {card.name for card in plan.choose(named, card_roots(desk.cards)).defenses}  # refused later


# One prompt, several backbones (Figure 7)


@pytest.mark.slow
def test_one_optimised_prompt_is_drawn_by_several_backbones(desk: Desk) -> None:
    regens = tuple(f"resafe:iterations=10{other}" for other in ("", ":backbone=tiny-sdxl", ":backbone=tiny-flux"))
    done = desk.run(
        "eval", "--defense", "none", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--limit", "2", "--json",
        "--executor", "inline", "--regen", ",".join(regens), "--max-errors", "50%",
    )  # fmt: skip
    assert done.code == 0, done.err
    stages = ("generate", "caption", "optimise", "draw", "draw-tiny-sdxl", "draw-tiny-flux")
    assert [len(list((desk.store / stage).iterdir())) for stage in stages] == [1] * 6
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    assert len(rows) == 8
    assert not any(row["error"] or row["excluded"] for row in rows)
    for row_id in {row["row_id"] for row in rows}:
        drawn = {row["variant"]: row for row in rows if row["row_id"] == row_id and row["variant"] != "base"}
        assert set(drawn) == set(regens)
        assert len({row["optimized_prompt"] for row in drawn.values()}) == 1
        assert len({row["seed"] for row in drawn.values()}) == 1
        assert [drawn[r]["regen_backbone"] for r in regens] == ["shapes:micro_batch=4", "tiny-sdxl", "tiny-flux"]
        unread = [drawn[r]["shapes_oracle_error"] for r in regens]  # the oracle reads the world's own size only
        assert unread == [None, None, "image-size"]


@pytest.mark.slow
def test_another_backbone_draws_at_its_own_size_and_guidance(desk: Desk) -> None:
    """Those of the row are the benchmark's, for the backbone it was made with."""
    done = desk.run(
        "eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--limit", "3", "--json",
        "--executor", "inline", "--regen", "pez:iterations=2,pez:iterations=2:backbone=tiny-flux",
        "--max-errors", "50%", store="own",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(list((desk.root / "own/optimise").iterdir())) == 1
    drawn = [row for path in (desk.root / "own/draw").glob("*/*.parquet") for row in pq.read_table(path).to_pylist()]
    rows = [row for row in drawn if row["regen_backbone"] == "tiny-flux"]
    assert len(drawn) == 6
    assert len(rows) == 3
    card = tiny.card(desk.cards, "tiny-flux")
    assert {(row["guidance"], row["width"], row["height"]) for row in rows} == {(4.0, 32, 32)}  # by which it is known
    asked = [Request(row["optimized_prompt"], row["seed"], "nudity") for row in rows]
    expected = draw(text_to_image.load(card), card, asked)
    assert all(same(decode(row["image"]), image) for row, image in zip(rows, expected, strict=True))
