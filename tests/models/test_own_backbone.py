"""Backbones without a card: folders and single files of the user's own, what is read of them, what is refused.

The weights are those of the shapes world, saved as a stranger would find them; what its card draws is the reference.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import compvis
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from harness.cards import overrides
from harness.cards.backbone import BackboneCard, Configuration
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.places import PACKAGE
from harness.cards.profile import ProfileCard
from harness.defenses import none
from harness.errors import UserError
from harness.models import own_backbone, text_to_image, weights
from harness.models.text_to_image import Canvas, Request
from harness.pipeline.prerequisites import find_weights
from harness.pipeline.stage_specs import Specs
from harness.store.fingerprint import FileHashes

ROOTS = card_roots()
WORLD = PACKAGE / "shapes/weights/sd"
CARD = overrides.backbone("shapes:steps=2", ROOTS)
SAMPLED = "steps=2:guidance=4:micro_batch=16"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return text_to_image.load(CARD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The world's pipeline, copied to a folder of the user's."""
    return Path(shutil.copytree(WORLD, tmp_path / "My Model"))


def drawn(card: BackboneCard) -> np.ndarray:
    loaded = text_to_image.load(card)
    request = Request("a red circle left of a blue square", 7, "benign")
    canvas = Canvas(card.guidance, card.width, card.height)
    return text_to_image.sample(loaded, none.load(loaded, {}, None), [request], canvas, card.steps, 2)[0]


def test_a_folder_draws_what_its_card_draws_at_its_own_size(folder: Path) -> None:
    card = own_backbone.backbone(f"{folder}:{SAMPLED}", ROOTS)
    assert (card.width, card.height, card.pipeline, card.gated) == (32, 32, "StableDiffusionPipeline", False)
    assert card.name == "my-model@local:steps=2:guidance=4:micro_batch=16"
    assert np.array_equal(drawn(card), drawn(CARD))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_single_file_gives_the_very_weights_and_images(
    pipe: StableDiffusionPipeline, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"one.{suffix}"
    if suffix == "ckpt":
        compvis.save_ckpt(pipe, path, callbacks={Path: Path("a trainer's own")})
    else:
        compvis.save_safetensors(pipe, path)
    beside = Configuration(source=str(WORLD))
    card = CARD.model_copy(update={"name": "one", "source": str(path), "configuration": beside})
    loaded = text_to_image.load(card)
    for part in ("unet", "vae", "text_encoder"):
        expected, got = getattr(pipe, part).state_dict(), getattr(loaded, part).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(value, got[name]) for name, value in expected.items()), part
    assert np.array_equal(drawn(card), drawn(CARD))


@pytest.mark.parametrize("dropped", ["first_stage_model.decoder.conv_out.bias", "model.diffusion_model.out.2.weight"])
def test_a_single_file_that_lacks_a_tensor_is_refused(
    pipe: StableDiffusionPipeline, tmp_path: Path, dropped: str
) -> None:
    content = compvis.tensors(pipe)
    del content[dropped]
    save_file(content, tmp_path / "one.safetensors")
    card = CARD.model_copy(
        update={"source": str(tmp_path / "one.safetensors"), "configuration": Configuration(source=str(WORLD))}
    )
    with pytest.raises(UserError, match="one.safetensors"):
        text_to_image.load(card)


def test_a_single_file_goes_with_the_configuration_of_sd_1_4_unless_its_card_says_another(
    pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compvis.save_safetensors(pipe, tmp_path / "one.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for spec in ("one.safetensors", "./one.safetensors", str(tmp_path / "one.safetensors")):
        card = own_backbone.backbone(spec, ROOTS)
        own, beside = card.weights()
        assert own.place == tmp_path / "one.safetensors"
        assert beside.source == "CompVis/stable-diffusion-v1-4"
        assert "unet/config.json" in beside.files
        assert not any(name.endswith(".safetensors") for name in beside.files)
    (line,) = weights.missing(beside)
    assert "configuration sd-1-4" in line
    assert "harness fetch weights sd-1-4" in line
    assert [ref.source for ref in find_weights("./one.safetensors", ROOTS)] == [own.source, beside.source]


def test_what_is_sampled_otherwise_is_told_from_a_path_with_colons(folder: Path) -> None:
    odd = folder.rename(folder.parent / "a:b")
    card = own_backbone.backbone(f"{odd}:steps=3", ROOTS)
    assert (card.name, card.steps, card.source) == ("a-b@local:steps=3", 3, str(odd))
    with pytest.raises(UserError, match="no 'step'.*did you mean 'steps'"):
        own_backbone.backbone(f"{odd}:step=3", ROOTS)


def test_half_precision_files_are_read_by_their_name(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert own_backbone.backbone(str(folder), ROOTS).variant == "fp16"
    assert text_to_image.load(own_backbone.backbone(str(folder), ROOTS)) is not None


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def without_weights(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def without_a_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (folder / "vae/x.safetensors.index.json").write_text(json.dumps(index))
    (folder / "vae/x-1.safetensors").write_bytes(b"")


def of_another_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))


def half_downloaded(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    (folder / "scheduler/scheduler_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (shutil.rmtree, ("nothing is there", "model_index.json", ".safetensors or .ckpt")),
        (emptied, ("an empty folder is there",)),
        (without_index, ("a folder with scheduler/, text_encoder/, tokenizer/, unet/, vae/", "model_index.json")),
        (without_weights, ("lacks unet/*.safetensors", "diffusion_pytorch_model.bin is not read")),
        (without_a_shard, ("lacks vae/x-2.safetensors",)),
        (of_another_class, ("is a KandinskyPipeline", "write a card")),
        (half_downloaded, ("lacks scheduler/scheduler_config.json, text_encoder/config.json",)),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_at_planning(folder: Path, damage: object, parts: tuple[str, ...]) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as error:
        own_backbone.backbone(str(folder), ROOTS)
    assert str(folder) in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["conditioner.embedders.1.model.a", "model.diffusion_model.a", "first_stage_model.a"], "Stable Diffusion XL"),
        (["cond_stage_model.model.a", "model.diffusion_model.a", "first_stage_model.a"], "Stable Diffusion 2"),
        (["lora_unet_a.weight"], "LoRA"),
        (["unet.a"], "holds no tensors named model.diffusion_model."),
    ],
)
def test_a_single_file_of_another_model_is_refused_by_what_it_looks_like(
    tmp_path: Path, names: list[str], part: str
) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=part):
        own_backbone.backbone(str(tmp_path / "other.safetensors"), ROOTS)


def test_a_path_that_only_repeats_a_cards_name_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the card is called 'sd-1-4', without a path"):
        own_backbone.backbone("./sd-1-4", ROOTS)


def generated(card: BackboneCard) -> str:
    specs = Specs(load_card(ProfileCard, "shapes", ROOTS), card, ROOTS, FileHashes())
    return specs.generate(overrides.defense("none", ROOTS), "nudity").fingerprint


def test_weights_are_known_by_what_they_hold_and_not_by_where_they_lie(folder: Path) -> None:
    first = generated(own_backbone.backbone(str(folder), ROOTS))
    (folder.parent / "elsewhere").mkdir()
    moved = Path(shutil.move(folder, folder.parent / "elsewhere/my model"))
    (moved / "notes.pdf").write_bytes(b"read by nobody")
    assert generated(own_backbone.backbone(str(moved), ROOTS)) == first
    settings = moved / "scheduler/scheduler_config.json"
    settings.write_text(settings.read_text() + "\n")
    assert generated(own_backbone.backbone(str(moved), ROOTS)) != first
