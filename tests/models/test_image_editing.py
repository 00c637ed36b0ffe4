"""Image-to-image editors: what they are told, the diptych's geometry, padding, weights."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_editors as tiny
import torch
import yaml
from desk import Desk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from harness.cards import regenerator
from harness.cards.base import card_roots
from harness.cards.faults import value_fault
from harness.cards.load import load_card
from harness.cards.regenerator import Edit, RegeneratorCard
from harness.errors import RowError, UserError
from harness.models import image_editing
from harness.models.image_editing import Job
from harness.pipeline.stages.images import decode

CARDS = ("instruct-pix2pix", "instruct-clip", "icedit")


def image(seed: int, height: int = 32, width: int = 32) -> image_editing.ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jobs(count: int, concept: str = "nudity") -> list[Job]:
    return [Job(image(i), 2**63 + i, concept) for i in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card root with both editors and a LoRA for each."""
    folder = tmp_path_factory.mktemp("editors")
    tiny.save_lora(tiny.save_pix2pix(folder), folder / "weights/pix2pix-lora")
    tiny.save_lora(tiny.save_flux(folder), folder / "weights/flux-lora")
    return folder


@pytest.fixture(scope="module", params=["pix2pix", "flux"])
def loaded(request: pytest.FixtureRequest, root: Path) -> tuple[Any, Edit]:
    settings = tiny.settings() if request.param == "pix2pix" else tiny.diptych()
    return image_editing.load(settings, root), settings


class Recorder:
    """Notes what it is called with; gives back each image, 100 levels darker in the right half."""

    def __init__(self, rows_short: int = 0) -> None:
        self.calls: list[dict[str, Any]] = []
        self._rows_short = rows_short

    def __call__(self, **asked: Any) -> SimpleNamespace:
        self.calls.append(asked)
        images = []
        for imported_image in asked["image"]:
            image = np.asarray(imported_image).astype(np.float32)
            image[:, image.shape[1] // 2 :] -= 100
            images.append(image[: image.shape[0] - self._rows_short] / 255)
        return SimpleNamespace(images=np.stack(images))


# What they are told


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_say_what_the_paper_says(name: str) -> None:
    edit = load_card(RegeneratorCard, name, card_roots()).edit
    assert edit is not None
    for concept in ("nudity", "violence", "benign"):
        assert image_editing.instruction(edit, concept) == "Make this image safe."
    assert image_editing.instruction(edit, "van-gogh") == ("Remove any stylistic influence of Van Gogh from the image.")
    assert image_editing.instruction(edit, "picasso") == "Remove any stylistic influence of Picasso from the image."


def test_only_icedit_wraps_the_instruction() -> None:
    plain, _, wrapped = (load_card(RegeneratorCard, n, card_roots()).edit for n in CARDS)
    assert image_editing.prompt(plain, "nudity") == "Make this image safe."
    assert image_editing.prompt(wrapped, "nudity") == (
        "A diptych with two side-by-side images of the same scene. On the right, the scene is exactly the same as on "
        "the left but Make this image safe."
    )


def test_instruct_clip_is_instruct_pix2pix_with_low_rank_weights() -> None:
    plain, lora, _ = (load_card(RegeneratorCard, n, card_roots()).edit for n in CARDS)
    same = {"pipeline", "source", "revision", "files", "scheduler", "guidance", "image_guidance"}
    assert plain.model_dump(include=same) == lora.model_dump(include=same)
    assert plain.lora is None
    assert lora.lora is not None


@pytest.mark.parametrize("name", CARDS)
def test_diffusers_has_the_classes_that_the_cards_name(name: str) -> None:
    edit = load_card(RegeneratorCard, name, card_roots()).edit
    taken = inspect.signature(image_editing._class(edit.pipeline).__call__).parameters
    assert {"image", "generator", "guidance_scale", "num_inference_steps"} <= set(taken)
    assert ("mask_image" in taken) == (edit.layout == "diptych")
    assert ("image_guidance_scale" in taken) == (edit.image_guidance is not None)
    if edit.scheduler:
        image_editing._class(edit.scheduler)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "someone/editor"}, "needs its files"),
        ({"template": "do it"}, r"\{instruction\}"),
        ({"artist_instruction": "remove the style"}, r"\{artist\}"),
        ({"layout": "diptych"}, "image_guidance is of the layout 'single'"),
        ({"image_guidance": 0.5}, "1 or more"),
        ({"revision": "main"}, "should match"),
        ({"layout": "triptych"}, "'single'.*'diptych'"),
    ],
)
def test_a_bad_card_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        tiny.settings(**changed)
    assert re.search(said, value_fault(refused.value.errors()[0]))


# Sizes and geometry


@given(width=st.integers(8, 3000), height=st.integers(8, 3000))
def test_an_image_keeps_its_own_size_but_for_the_grid(width: int, height: int) -> None:
    wide, high = image_editing.canvas(tiny.settings(), width, height)
    assert wide % 8 == high % 8 == 0
    assert 0 <= width - wide < 8
    assert 0 <= height - high < 8


@given(width=st.integers(64, 3000), height=st.integers(64, 3000))
def test_a_fixed_width_keeps_the_aspect(width: int, height: int) -> None:
    wide, high = image_editing.canvas(tiny.diptych(width=512), width, height)
    assert wide == 512
    assert high % 8 == 0
    assert high == 8 or 0 <= height * 512 / width - high < 8
    assert image_editing.canvas(tiny.diptych(width=None, height=512), height, width) == (high, wide)


def test_both_sides_may_be_fixed() -> None:
    assert image_editing.canvas(tiny.diptych(width=512, height=260), 40, 1000) == (512, 256)


@pytest.mark.parametrize(("height", "width"), [(32, 24), (48, 24)])
def test_a_diptych_shows_the_image_twice_and_masks_the_right(height: int, width: int) -> None:
    source = image(1, height, width)
    pipe = Recorder()
    (edited,) = image_editing.edit(pipe, tiny.diptych(width=width), [Job(source, 3, "nudity")])
    (call,) = pipe.calls
    canvas, mask = np.asarray(call["image"][0]), np.asarray(call["mask_image"][0])
    assert (call["width"], call["height"]) == (2 * width, height)
    assert canvas.shape == (height, 2 * width, 3)
    assert (canvas[:, :width] == source).all()
    assert (canvas[:, width:] == source).all()
    assert mask.shape == (height, 2 * width)
    assert (mask[:, :width] == 0).all()
    assert (mask[:, width:] == 255).all()
    # What comes back is the half that was filled in.
    assert (edited == np.clip(source.astype(int) - 100, 0, 255)).all()
    assert edited.dtype == np.uint8


def test_the_right_half_is_cut_where_the_answer_s_middle_is() -> None:
    # FLUX floors heights to 16 pixels, so that the answer may be smaller than what was asked for.
    source = image(2, 40, 24)
    (edited,) = image_editing.edit(Recorder(rows_short=8), tiny.diptych(), [Job(source, 3, "nudity")])
    assert (edited == np.clip(source[:32].astype(int) - 100, 0, 255)).all()


@pytest.mark.parametrize(("layout", "filter_"), [("single", Image.LANCZOS), ("diptych", Image.BICUBIC)])
def test_an_image_is_resized_as_the_published_code_does(layout: str, filter_: Image.Resampling) -> None:
    source = image(3, 60, 40)
    make = tiny.settings if layout == "single" else tiny.diptych
    pipe = Recorder()
    (edited,) = image_editing.edit(pipe, make(width=24, micro_batch=1), [Job(source, 3, "nudity")])
    imported_image = pipe.calls[0]["image"][0].crop((0, 0, 24, 32))  # 24 / 40 x 60 = 36, floored to 32
    assert imported_image == Image.fromarray(source).resize((24, 32), filter_)
    assert edited.shape == (32, 24, 3)


def test_a_card_may_ask_for_the_image_s_own_size_back() -> None:
    source = image(4, 60, 40)
    (kept,) = image_editing.edit(Recorder(), tiny.diptych(), [Job(source, 3, "nudity")])
    (restored,) = image_editing.edit(Recorder(), tiny.diptych(restore_size=True), [Job(source, 3, "nudity")])
    assert kept.shape == (32, 24, 3)
    assert restored.shape == source.shape
    assert (restored == np.asarray(Image.fromarray(kept).resize((40, 60), Image.BICUBIC))).all()


# Micro-batches


def test_the_pipeline_gets_the_card_s_numbers_and_a_generator_for_each_row() -> None:
    pipe = Recorder()
    image_editing.edit(pipe, tiny.settings(), jobs(3))
    (call,) = pipe.calls
    assert {k: call[k] for k in ("guidance_scale", "image_guidance_scale", "num_inference_steps", "output_type")} == {
        "guidance_scale": 7.5, "image_guidance_scale": 1.5, "num_inference_steps": 2, "output_type": "np",
    }  # fmt: skip
    assert call["prompt"] == ["Make this image safe."] * 3
    assert [g.initial_seed() for g in call["generator"]] == [2**63, 2**63 + 1, 2**63 + 2]
    assert {g.device.type for g in call["generator"]} == {"cpu"}
    diptych = Recorder()
    image_editing.edit(diptych, tiny.diptych(), jobs(1))
    assert "image_guidance_scale" not in diptych.calls[0]


def test_partial_micro_batches_repeat_the_last_job() -> None:
    pipe = Recorder()
    image_editing.edit(pipe, tiny.settings(), jobs(5))
    assert [[g.initial_seed() - 2**63 for g in call["generator"]] for call in pipe.calls] == [[0, 1, 2], [3, 4, 4]]


@given(sizes=st.lists(st.sampled_from([(8, 8), (8, 16), (16, 8)]), max_size=9), micro_batch=st.integers(1, 4))
def test_images_are_grouped_by_size_and_come_back_in_order(sizes: list[tuple[int, int]], micro_batch: int) -> None:
    sources = [image(i, *size) for i, size in enumerate(sizes)]
    pipe = Recorder()
    settings = tiny.settings(micro_batch=micro_batch)
    edited = image_editing.edit(pipe, settings, [Job(s, i, "nudity") for i, s in enumerate(sources)])
    for source, result in zip(sources, edited, strict=True):
        middle = source.shape[1] // 2
        assert (result[:, :middle] == source[:, :middle]).all()
        assert result.shape == source.shape
    for call in pipe.calls:
        assert len(call["prompt"]) == micro_batch
        assert len({p.size for p in call["image"]}) == 1
    assert len(pipe.calls) == sum(-(-sizes.count(size) // micro_batch) for size in set(sizes))


def test_the_guard_reads_the_instruction_before_anything_is_drawn() -> None:
    pipe = Recorder()
    settings = tiny.settings(instruction="Make this image safe for a child.")
    with pytest.raises(RowError, match="guard:age-term"):
        image_editing.edit(pipe, settings, [*jobs(1, "violence"), *jobs(1, "nudity")])
    assert pipe.calls == []
    assert len(image_editing.edit(pipe, settings, jobs(1, "violence"))) == 1


# Real pipelines


def test_a_row_s_image_depends_on_nothing_but_the_row(loaded: tuple[Any, Edit]) -> None:
    pipe, settings = loaded
    rows = jobs(5)
    together = image_editing.edit(pipe, settings, rows)
    alone = [image_editing.edit(pipe, settings, [row])[0] for row in rows]
    backwards = image_editing.edit(pipe, settings, rows[::-1])[::-1]
    for first, second, third in zip(together, alone, backwards, strict=True):
        assert (first == second).all()
        assert (first == third).all()
    assert len({p.tobytes() for p in together}) == 5


def test_image_seed_and_instruction_each_matter(loaded: tuple[Any, Edit]) -> None:
    pipe, settings = loaded
    base = Job(image(0), 1, "nudity")
    others = [base._replace(image=image(1)), base._replace(seed=2), base._replace(concept="van-gogh")]
    first, *rest = image_editing.edit(pipe, settings, [base, *others])
    assert all((first != other).any() for other in rest)


def test_no_checker_blackens_images(root: Path) -> None:
    assert image_editing.load(tiny.settings(), root).safety_checker is None


def test_a_card_may_change_the_scheduler(root: Path) -> None:
    pipe = image_editing.load(tiny.settings(scheduler="DDIMScheduler"), root)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    with pytest.raises(UserError, match="did you mean 'DDIMScheduler'"):
        image_editing.load(tiny.settings(scheduler="DDIMSchedule"), root)


# Low-rank weights


def with_lora(name: str, **changed: Any) -> Edit:
    make = tiny.settings if name.startswith("pix2pix") else tiny.diptych
    return make(lora={"source": f"package:weights/{name}", "licence": "none"} | changed)


@pytest.mark.parametrize("name", ["pix2pix-lora", "flux-lora"])
def test_low_rank_weights_change_the_image_by_their_scale(root: Path, name: str) -> None:
    plain = with_lora(name).model_copy(update={"lora": None})

    def drawn(settings: Edit) -> image_editing.ImageArray:
        return image_editing.edit(image_editing.load(settings, root), settings, jobs(1))[0]

    base = drawn(plain)
    assert (drawn(with_lora(name, scale=0)) == base).all()
    assert (drawn(with_lora(name)) != base).any()
    assert (drawn(with_lora(name, scale=0.5)) != drawn(with_lora(name))).any()


def test_low_rank_weights_of_another_model_are_refused(root: Path) -> None:
    foreign = with_lora("pix2pix-lora", source="package:weights/flux-lora")
    with pytest.raises(UserError, match=r"regenerator mine: .*does not fit StableDiffusionInstructPix2PixPipeline"):
        image_editing.load(foreign, root, name="mine")


def test_low_rank_weights_that_only_half_fit_are_refused(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(root / "weights/pix2pix-lora/pytorch_lora_weights.safetensors")
    half = {(k if i % 4 < 2 else k.replace("unet.", "vnet.")): v for i, (k, v) in enumerate(sorted(tensors.items()))}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/pix2pix").symlink_to(root / "weights/pix2pix")
    (tmp_path / "weights/half").mkdir()
    save_file(half, tmp_path / "weights/half/pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match=r"\d+ of \d+ layers found a place"):
        image_editing.load(with_lora("pix2pix-lora", source="package:weights/half"), tmp_path)


def test_a_pickle_is_never_opened(root: Path, tmp_path: Path) -> None:
    (tmp_path / "weights/bad").mkdir(parents=True)
    (tmp_path / "weights/pix2pix").symlink_to(root / "weights/pix2pix")
    torch.save({"unet.lora_A.weight": torch.zeros(1)}, tmp_path / "weights/bad/pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="no safetensors file"):
        image_editing.load(with_lora("pix2pix-lora", source="package:weights/bad"), tmp_path)


def test_without_peft_one_line_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_editing, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="`pip install peft`"):
        image_editing.load(with_lora("pix2pix-lora"), root)
    image_editing.load(tiny.settings(), root)  # nothing to add, nothing needed


# Where weights come from


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds one commit of two repositories."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, source in (("someone/editor", "pix2pix"), ("someone/lora", "pix2pix-lora")):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "snapshots").mkdir()
        (folder / "refs/main").write_text(COMMIT)
        (folder / "snapshots" / COMMIT).symlink_to(root / "weights" / source)
    return tmp_path


def from_hub(**changed: Any) -> Edit:
    lora = {"source": "someone/lora", "licence": "none"}
    return tiny.settings(source="someone/editor", files=["unet/config.json", "model_index.json"], lora=lora, **changed)


def test_an_unpinned_source_is_known_by_the_commit_at_hand(hub: Path, root: Path) -> None:
    assert image_editing.identity(from_hub(), root) == {"base": COMMIT, "lora": COMMIT}
    pinned = image_editing.pinned(from_hub())
    assert (pinned.revision, pinned.lora and pinned.lora.revision) == (COMMIT, COMMIT)
    assert image_editing.pinned(pinned) == pinned


@pytest.mark.parametrize("pin", [False, True])
def test_weights_load_from_the_cache_of_the_hub(hub: Path, root: Path, pin: bool) -> None:
    settings = image_editing.pinned(from_hub()) if pin else from_hub()
    drawn = image_editing.edit(image_editing.load(settings, root), settings, jobs(1))[0]
    local = with_lora("pix2pix-lora")
    assert (drawn == image_editing.edit(image_editing.load(local, root), local, jobs(1))[0]).all()


def test_what_the_cache_lacks_is_named(hub: Path, root: Path) -> None:
    other = "f" * 40
    with pytest.raises(UserError, match=r"someone/editor@ffffffff are not on this machine .*fetch weights mine`$"):
        image_editing.load(from_hub(revision=other), root, name="mine")
    gated = tiny.settings(source="someone/else", files=["model_index.json"], gated=True)
    for call in (image_editing.load, image_editing.identity):
        with pytest.raises(UserError, match=r"weights of someone/else .*accept the terms at https://huggingface.co/"):
            call(gated, root, name="mine")
    lora = from_hub().model_copy(update={"lora": regenerator.Lora(source="someone/none", licence="none")})
    for call in (image_editing.load, image_editing.identity):
        with pytest.raises(UserError, match=r"weights of someone/none .*`harness fetch weights mine`"):
            call(lora, root, name="mine")


def test_what_lies_beside_the_card_is_known_by_its_bytes(root: Path, tmp_path: Path) -> None:
    settings = with_lora("pix2pix-lora")
    before = image_editing.identity(settings, root)
    assert "unet/diffusion_pytorch_model.safetensors" in before["base"]
    assert image_editing.identity(settings.model_copy(update={"lora": None}), root) == {"base": before["base"]}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/pix2pix").symlink_to(root / "weights/pix2pix")
    (tmp_path / "weights/pix2pix-lora").mkdir()
    file = "weights/pix2pix-lora/pytorch_lora_weights.safetensors"
    (tmp_path / file).write_bytes((root / file).read_bytes() + b"\0")
    after = image_editing.identity(settings, tmp_path)
    assert after["base"] == before["base"]
    assert after["lora"] != before["lora"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for call in (image_editing.load, image_editing.identity):
        with pytest.raises(UserError, match=r"no folder .*weights/pix2pix"):
            call(tiny.settings(), tmp_path)
    os.makedirs(tmp_path / "weights/pix2pix")
    with pytest.raises(UserError, match=r"package:weights/pix2pix are not on this machine [^`]*$"):
        image_editing.load(tiny.settings(), tmp_path)


def test_what_has_to_be_fetched() -> None:
    icedit = load_card(RegeneratorCard, "icedit", card_roots()).edit
    assert icedit is not None
    base, lora = icedit.weights("icedit", Path())
    assert base.gated
    assert "transformer/diffusion_pytorch_model-00003-of-00003.safetensors" in base.files
    assert (lora.source, lora.revision, lora.gated) == ("RiverZ/normal-lora", None, False)
    assert lora.files == ("pytorch_lora_weights.safetensors",)


# From the command line


def card(desk: Desk, name: str, edit: Edit) -> None:
    folder = desk.cards / "pipelines/regenerators"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"summary": "an editor of a test", "paper": "none", "edit": edit.model_dump(mode="json")}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields))


@pytest.mark.slow
def test_editors_stand_beside_a_defense_in_a_run(desk: Desk, root: Path) -> None:
    (desk.cards / "weights").symlink_to(root / "weights")
    told = {"pixels": with_lora("pix2pix-lora"), "halves": with_lora("flux-lora").model_copy(update={"width": 32})}
    for name, edit in told.items():
        card(desk, name, edit)
    words = ("eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--limit", "4")
    done = desk.run(*words, "--regen", "pixels,halves,pixels:steps=3", "--executor", "inline")
    assert done.code == 0, done.err

    stages: dict[str, list[dict[str, Any]]] = {}
    for path in desk.shards():
        rows = pq.read_table(desk.store / path).to_pylist()
        stages.setdefault(path.split("/")[0].partition("-")[0], []).extend(rows)
    assert (desk.store / "edit-pixels").is_dir()  # each editor has a stage to itself, so that it is loaded once
    assert (desk.store / "edit-halves").is_dir()
    base = {row["row_id"]: row for row in stages["generate"]}
    assert len(base) == 4
    told["pixels:steps=3"] = told["pixels"].model_copy(update={"steps": 3})
    torch.set_num_threads(1)  # as a stage does
    edited = {variant: [r for r in stages["edit"] if r["variant"] == variant] for variant in told}
    assert sum(map(len, edited.values())) == len(stages["edit"]) == 12
    for variant, edit in told.items():
        rows = sorted(edited[variant], key=lambda row: str(row["row_id"]))
        asked = [Job(decode(base[r["row_id"]]["image"]), base[r["row_id"]]["seed"], "nudity") for r in rows]
        for row, image_ in zip(rows, image_editing.edit(image_editing.load(edit, root), edit, asked), strict=True):
            assert (decode(row["image"]) == image_).all()
            assert row["regen_backbone"] == variant.partition(":")[0]

    before = desk.shards()
    again = desk.run(*words, "--regen", "halves", "--executor", "inline")
    assert again.code == 0, again.err
    assert desk.shards() == before  # everything was there


def test_an_editor_that_is_not_on_this_machine_says_how_to_get_it(desk: Desk) -> None:
    done = desk.run("eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--regen", "icedit")
    assert done.code == 2
    assert "harness fetch weights" in done.err
    assert "not on this machine" in done.err or "are not in" in done.err
    assert desk.shards() == {}
