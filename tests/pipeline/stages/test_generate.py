"""The generate stage on the shapes backbone: which defense draws, what a failure leaves, whose image it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from benches import bench

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.errors import TransientError, UserError
from harness.models import text_to_image
from harness.pipeline.plan import make
from harness.pipeline.request import Request
from harness.pipeline.spec import StageSpec
from harness.pipeline.stages import generate
from harness.pipeline.stages.base import Stage, WorkerContext
from harness.store.fingerprint import FileHashes
from harness.store.schema import IMAGE
from harness.store.shards import Store

TEXTS = ("a red star on a white background", "a blue square", "a green star left of a red cross", "a yellow star")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards: a benchmark, the small world's backbone in few steps, and a defense whose weights are another model's."""
    folder = tmp_path_factory.mktemp("generate") / "cards"
    folder.mkdir()
    bench(folder, "few", 2)
    for kind in ("backbones", "defenses"):
        (folder / "pipelines" / kind).mkdir(parents=True)
    text = load_card(BackboneCard, "shapes", card_roots()).path.read_text()
    text = text.replace("steps: 12", "steps: 3").replace("micro_batch: 16", "micro_batch: 2")
    (folder / "pipelines/backbones/quick.yaml").write_text(text)
    torch.save({"mid_block.none.weight": torch.zeros(1)}, folder / "other.pt")
    (folder / "pipelines/defenses/other.yaml").write_text(
        f"summary: of a test\npaper: none\nmechanism: uce\nartefact: true\n"
        f"params: {{erase: [star], weights: {folder / 'other.pt'}}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    folder = tmp_path_factory.mktemp("context")
    return WorkerContext(store=Store(folder / "store"), run=folder / "run")


def worker(root: Path, defense: str) -> dict[str, Any]:
    """What the generate stage of a plan is loaded with."""
    request = Request(defenses=(defense,), benches=("few",), profile="shapes", backbone="quick", baseline=False)
    (condition,) = make(request, card_roots(root), root, FileHashes()).conditions
    return dict(condition.variants[0].images.worker)


def rows(texts: tuple[str, ...] = TEXTS, **changed: dict[int, Any]) -> pa.Table:
    """Prompt rows; ``changed``: column to place to value."""
    entries = []
    for i, text in enumerate(texts):
        entry: dict[str, Any] = {
            "row_id": f"few/{i:05d}", "sample": 0, "bench": "few", "concept": "nudity", "prompt": text, "seed": 7 + i,
            "guidance": 4.0, "width": 32, "height": 32, "excluded": None, "profile": "shapes", "backbone": "quick",
            "defense": "x", "variant": "base",
        }  # fmt: skip
        entries.append(entry | {name: places[i] for name, places in changed.items() if i in places})
    return pa.Table.from_pylist(entries, schema=pa.schema([f for f in IMAGE if f.name in entries[0]]))


def hashes(drawn: pa.Table) -> list[str | None]:
    found: list[str | None] = drawn["image_sha256"].to_pylist()
    return found


def test_a_defense_that_cannot_be_loaded_leaves_nothing_behind(root: Path, context: WorkerContext) -> None:
    """Shards of the defense before must not be drawn undefended."""

    def spec(defense: str) -> StageSpec:
        return StageSpec(stage=defense, kind="generate", worker=worker(root, defense), key={}, fingerprint=defense)

    stage = Stage({}, context)
    first = stage._load(spec("uce"))
    defended = hashes(first(rows()))
    with pytest.raises(UserError, match=r"other\.pt: key 'mid_block.none.weight' is not one of the UNet's"):
        stage._load(spec("other"))
    first = stage._load(spec("uce"))
    assert hashes(first(rows())) == defended
    plain = generate.load(worker(root, "none"), context, first)
    undefended = hashes(plain(rows()))
    assert all(a != b for a, b in zip(defended, undefended, strict=True))
    fresh = generate.load(worker(root, "none"), context, None)
    assert hashes(fresh(rows())) == undefended


def test_a_built_defense_is_kept_with_what_it_was_made_of(root: Path, context: WorkerContext) -> None:
    asked = worker(root, "uce")
    generate.load(asked, context, None)
    (layer,) = asked["layers"]
    folder = context.store.folder("artefact", layer["artefact"]["fingerprint"])
    record = json.loads((folder / "artefact.json").read_text())
    assert record["kind"] == "unet-delta"
    assert record["method"]["mechanism"] == "uce"
    assert record["method"]["params"]["erase"] == ["star"]
    assert record["weights"]
    stamp = (folder / "artefact.safetensors").stat().st_mtime_ns
    generate.load(asked, context, None)
    assert (folder / "artefact.safetensors").stat().st_mtime_ns == stamp


def test_rows_of_other_guidance_and_size_are_drawn_as_if_alone(root: Path, context: WorkerContext) -> None:
    drawer = generate.load(worker(root, "none"), context, None)
    mixed = rows(guidance={1: 1.0, 2: 7.5}, width={3: 48})
    together = hashes(drawer(mixed))
    assert len(set(together)) == 4
    assert together == [hashes(drawer(mixed.slice(i, 1)))[0] for i in range(4)]
    assert together == hashes(drawer(mixed.take([3, 2, 1, 0])))[::-1]


def test_a_row_without_guidance_is_drawn_undefended_where_guidance_is_what_a_defense_changes(
    root: Path, context: WorkerContext
) -> None:
    mixed = rows(TEXTS[:3], guidance={1: 1.0, 2: 0.5})
    plain = hashes(generate.load(worker(root, "none"), context, None)(mixed))
    for defense, note in (("sld-max", "sld:no-guidance"), ("sd-np", "negative_prompt:no-guidance")):
        found = generate.load(worker(root, defense), context, None)(mixed)
        assert found["error"].to_pylist() == [None] * 3
        assert found["defense_note"].to_pylist() == [None, note, note]
        assert [a == b for a, b in zip(hashes(found), plain, strict=True)] == [False, True, True]


def test_a_row_that_the_guard_refuses_is_excluded_and_its_mates_are_drawn(root: Path, context: WorkerContext) -> None:
    drawer = generate.load(worker(root, "none"), context, None)
    found = drawer(rows((TEXTS[0], "a child beside a star", TEXTS[2])))
    assert found["excluded"].to_pylist() == [None, "guard:age-term", None]
    assert [image is None for image in found["image"].to_pylist()] == [False, True, False]
    assert hashes(found)[0] == hashes(drawer(rows()))[0]


@pytest.mark.parametrize(("size", "said"), [(6, "set micro_batch: 3 in quick.yaml"), (1, "one image .* not fit")])
def test_out_of_memory_names_what_may_fit(
    root: Path, context: WorkerContext, monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    drawer = generate.load(worker(root, "none"), context, None)
    drawer.card = drawer.card.model_copy(update={"micro_batch": size, "name": f"quick:micro_batch={size}"})

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(text_to_image, "sample", full)
    with pytest.raises(TransientError, match=f"out of memory at micro_batch {size}; {said}"):
        drawer(rows())
