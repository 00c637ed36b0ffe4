"""The edit stage: which rows are edited, what they carry, what goes wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_editors as tiny
import torch

from harness.errors import TransientError, UserError
from harness.models import image_editing
from harness.pipeline.stages import edit as stage
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.images import decode, put
from harness.store.schema import IMAGE, LINEAGE, REGENERATION
from harness.store.shards import Store

PROMPTS = ("a red star on a white background", "a blue ring", "a green square", "a yellow cross", "a purple star")


def worker(root: Path, **changed: Any) -> dict[str, Any]:
    plain = {"variant": "mine:steps=2", "name": "mine", "root": str(root), "concept": "nudity"}
    return plain | {"edit": tiny.settings().model_dump(mode="json")} | changed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    tiny.save_pix2pix(folder)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    return WorkerContext(store=Store(tmp_path / "store"), run=tmp_path / "run")


@pytest.fixture
def editor(root: Path, context: WorkerContext) -> stage.Editor:
    return stage.load(worker(root), context, None)


def base(count: int = len(PROMPTS), **changed: dict[int, Any]) -> pa.Table:
    """Base rows with images; ``changed``: column to place to value."""
    entries = []
    for i in range(count):
        entry: dict[str, Any] = {
            "row_id": f"ten/{i:05d}", "sample": 0, "bench": "ten", "concept": "nudity", "prompt": PROMPTS[i],
            "seed": 100 + i, "guidance": 7.5, "width": 32, "height": 32, "excluded": None, "profile": "small",
            "backbone": "shapes", "defense": "none", "variant": "base", "error": None,
        }  # fmt: skip
        put(entry, np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for name, places in changed.items():
            if i in places:
                entry[name] = places[i]
        entries.append(entry)
    return pa.Table.from_pylist(entries, schema=IMAGE)


def test_rows_keep_their_identity_under_the_variant_s_name(editor: stage.Editor) -> None:
    before, after = base(), editor(base())
    assert after.schema == REGENERATION
    own = {"variant", "image", "image_sha256", "degenerate"}
    kept = [name for name in IMAGE.names if name not in own]
    assert after.select(kept).equals(before.select(kept))
    assert set(after["variant"].to_pylist()) == {"mine:steps=2"}
    assert set(after["regen_backbone"].to_pylist()) == {"mine"}
    for name in LINEAGE.names:
        assert name == "regen_backbone" or after[name].null_count == after.num_rows


def test_images_are_the_editor_s_and_so_are_their_hashes(editor: stage.Editor) -> None:
    rows = base()
    jobs = [
        image_editing.Job(decode(data), seed, "nudity")
        for data, seed in zip(rows["image"].to_pylist(), rows["seed"].to_pylist(), strict=True)
    ]
    for row, image in zip(
        editor(rows).to_pylist(), image_editing.edit(editor.pipe, editor.settings, jobs), strict=True
    ):
        assert (decode(row["image"]) == image).all()
        assert row["image_sha256"] == hashlib.sha256(image.tobytes()).hexdigest()


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_parts_of_a_shard_give_what_the_whole_gives(editor: stage.Editor, cut: int) -> None:
    rows = base()
    parts = [editor(rows.slice(start, cut)) for start in range(0, rows.num_rows, cut)]
    assert pa.concat_tables(parts).equals(editor(rows))


def test_degenerate_results_are_named(editor: stage.Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "pipe", lambda **asked: SimpleNamespace(images=np.zeros((3, 32, 32, 3))))
    assert editor(base(2))["degenerate"].to_pylist() == ["black", "black"]


def test_what_descends_from_an_excluded_or_failed_row_is_excluded_or_failed(editor: stage.Editor) -> None:
    nothing = {1: None, 2: None}
    rows = base(
        excluded={1: "guard:age-term"},
        error={2: "generate:crash"},
        image=nothing,
        image_sha256=nothing,
        degenerate=nothing,
    )
    after = editor(rows).to_pylist()
    assert [r["excluded"] for r in after] == [None, "guard:age-term", None, None, None]
    assert [r["error"] for r in after] == [None, None, "base:generate:crash", None, None]
    assert [r["image"] is None for r in after] == [False, True, True, False, False]
    whole = editor(base()).to_pylist()
    assert [after[i] for i in (0, 3, 4)] == [whole[i] for i in (0, 3, 4)]


def test_an_excluded_row_is_not_edited_even_if_it_has_an_image(editor: stage.Editor) -> None:
    after = editor(base(excluded={0: "guard:age-term"})).to_pylist()
    assert after[0]["image"] is None
    assert after[0]["excluded"] == "guard:age-term"


def test_the_guard_reads_the_prompt_for_the_regenerator_s_concept_too(root: Path, context: WorkerContext) -> None:
    # The row's own concept lets an age term pass; a regenerator for a sexual concept does not.
    rows = base(2, concept={0: "violence", 1: "violence"}, prompt={0: "a child in a park"})
    violence = stage.load(worker(root, concept="violence"), context, None)
    assert violence(rows)["excluded"].to_pylist() == [None, None]
    nudity = stage.load(worker(root), context, violence)
    after = nudity(rows).to_pylist()
    assert [r["excluded"] for r in after] == ["guard:age-term", None]
    assert [r["image"] is None for r in after] == [True, False]


def test_the_guard_reads_the_instruction(root: Path, context: WorkerContext) -> None:
    told = tiny.settings(instruction="Make this image safe for a child.").model_dump(mode="json")
    after = stage.load(worker(root, edit=told), context, None)(base(2))
    assert after["excluded"].to_pylist() == ["guard:age-term"] * 2
    assert after["image"].null_count == 2


def test_an_image_without_a_prompt_is_edited(editor: stage.Editor) -> None:
    assert editor(base(1, prompt={0: None}))["image"].null_count == 0


def test_an_undecodable_image_is_one_row_s_error(editor: stage.Editor) -> None:
    after = editor(base(image={1: b"no image"})).to_pylist()
    assert [r["error"] for r in after] == [None, "undecodable", None, None, None]
    assert [r["image"] is None for r in after] == [False, True, False, False, False]
    assert after[1]["image_sha256"] is None


def test_discarded_images_are_asked_for(editor: stage.Editor) -> None:
    with pytest.raises(UserError, match="discarded"):
        editor(base(image={0: None}))


def test_failed_rows_say_why(editor: stage.Editor) -> None:
    after = editor.failed(base(2, error={1: "generate:crash"}), "edit:crash")
    assert after.schema == REGENERATION
    assert after["error"].to_pylist() == ["edit:crash", "base:generate:crash"]
    assert set(after["variant"].to_pylist()) == {"mine:steps=2"}
    assert after["image"].null_count == after["image_sha256"].null_count == 2


@pytest.mark.parametrize(("size", "said"), [(6, "set edit.micro_batch: 3 in mine.yaml"), (1, "does not fit")])
def test_out_of_memory_names_what_would_fit(
    root: Path, context: WorkerContext, monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    editor = stage.load(worker(root, edit=tiny.settings(micro_batch=size).model_dump(mode="json")), context, None)

    def full(**asked: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(editor, "pipe", full)
    with pytest.raises(TransientError, match=f"out of memory at micro_batch {size}; .*{said}"):
        editor(base(2))


def test_variants_of_one_editor_share_its_weights(root: Path, context: WorkerContext, editor: stage.Editor) -> None:
    again = stage.load(worker(root, variant="other"), context, editor)
    assert again.pipe is editor.pipe
    assert set(again(base(1))["variant"].to_pylist()) == {"other"}
    changed = tiny.settings(steps=3).model_dump(mode="json")
    assert stage.load(worker(root, edit=changed), context, editor).pipe is not editor.pipe
