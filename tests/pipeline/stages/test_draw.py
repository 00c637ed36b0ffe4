"""The draw stage on the shapes backbone: whose seed and size, what the guard reads, what failed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny_backbones as tiny
import torch
from base_rows import base
from benches import bench

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.errors import TransientError
from harness.models import text_to_image
from harness.pipeline.plan import make
from harness.pipeline.request import Request
from harness.pipeline.stages import caption, draw, generate, optimise
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.images import decode
from harness.store.fingerprint import FileHashes
from harness.store.schema import IMAGE, LINEAGE, PROMPT, REGENERATION
from harness.store.shards import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards: a benchmark; ``quick``, the small world's backbone in few steps; ``other``, which draws wider images."""
    folder = tmp_path_factory.mktemp("draw") / "cards"
    folder.mkdir()
    bench(folder, "few", 5)
    text = load_card(BackboneCard, "shapes", card_roots()).path.read_text()
    (folder / "pipelines/backbones").mkdir(parents=True)
    quick = {"steps: 12": "steps: 3", "micro_batch: 16": "micro_batch: 2"}
    for name, changes in {
        "quick": quick,
        "other": {"guidance: 4.0": "guidance: 2.0", "width: 32": "width: 48"},
    }.items():
        own = text
        for old, new in (quick | changes).items():
            assert old in own
            own = own.replace(old, new)
        (folder / f"pipelines/backbones/{name}.yaml").write_text(own)
    return folder


def context(folder: Path) -> WorkerContext:
    return WorkerContext(store=Store(folder / "store"), run=folder / "run")


def worker(root: Path, regen: str = "resafe", concept: str = "nudity") -> dict[str, Any]:
    """What the draw stage of a plan is loaded with."""
    request = Request(
        defenses=("none",),
        benches=("few",),
        profile="shapes",
        backbone="quick",
        regens=(regen,),
        concept=concept,
        baseline=False,
    )
    (condition,) = make(request, card_roots(root), root, FileHashes()).conditions
    return dict(condition.variants[-1].images.worker)


@pytest.fixture(scope="module")
def drawer(root: Path, tmp_path_factory: pytest.TempPathFactory) -> draw.Draw:
    return draw.load(worker(root), context(tmp_path_factory.mktemp("context")), None)


def given(rows: pa.Table, texts: list[str | None], **columns: list[Any]) -> pa.Table:
    """Base rows beside what was seen and optimised, as the stage reads them."""
    n = rows.num_rows
    plain: dict[str, list[Any]] = {
        "unsafe_caption": ["a star and a circle"] * n,
        "unsafe_components": [["a star"]] * n,
        "safe_caption": ["a circle"] * n,
        "optimized_prompt": texts,
        "alpha": [0.7] * n,
        "cosine": [0.9] * n,
        "already_safe": [False] * n,
    }
    for schema in (caption.SCHEMA, optimise.SCHEMA):
        for field in schema:
            if field.name not in rows.column_names:
                values = (plain | columns).get(field.name, [None] * n)
                rows = rows.append_column(field, pa.array(values, field.type))
    return rows


TEXTS: list[str | None] = ["a red circle", "a blue square on a white background", "a green cross"]


def test_rows_keep_their_identity_and_say_how_they_came_about(drawer: draw.Draw) -> None:
    before = given(base(3), TEXTS)
    after = drawer(before)
    assert after.schema == REGENERATION
    kept = [n for n in IMAGE.names if n not in ("variant", "image", "image_sha256", "degenerate")]
    assert after.select(kept).equals(before.select(kept))  # the prompt too: the benchmark's, not the one drawn
    assert set(after["variant"].to_pylist()) == {"resafe"}
    assert set(after["regen_backbone"].to_pylist()) == {"quick"}
    assert set(after["vlm"].to_pylist()) == {"shapes-captioner"}
    lineage = [n for n in LINEAGE.names if n not in ("regen_backbone", "vlm", "regen_note")]
    assert after.select(lineage).equals(before.select(lineage))
    assert after["image"].null_count == after["error"].null_count - 3 == 0


def test_a_prompt_is_drawn_as_the_undefended_backbone_draws_it(drawer: draw.Draw) -> None:
    """With the row's own seed and guidance: pixel by pixel what ``generate`` makes of the same text."""
    rows = base(3, guidance={1: 1.5}, seed={2: 7})
    found = drawer(given(rows, TEXTS))
    prompts = rows.select(PROMPT.names).set_column(
        PROMPT.names.index("prompt"), PROMPT.field("prompt"), pa.array(TEXTS)
    )
    for name in ("profile", "backbone", "defense", "variant"):
        prompts = prompts.append_column(name, pa.array(["x"] * 3))
    expected = drawer.painter(prompts)
    assert found["image_sha256"].to_pylist() == expected["image_sha256"].to_pylist()
    assert len(set(found["image_sha256"].to_pylist())) == 3
    reseeded = drawer(given(base(3, guidance={1: 1.5}), TEXTS))["image_sha256"].to_pylist()
    unguided = drawer(given(base(3, seed={2: 7}), TEXTS))["image_sha256"].to_pylist()
    assert [a == b for a, b in zip(reseeded, found["image_sha256"].to_pylist(), strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(unguided, found["image_sha256"].to_pylist(), strict=True)] == [True, False, True]


def test_one_seed_for_all_drawings_and_the_backbone_s_own_guidance_where_the_card_says_so(
    root: Path, drawer: draw.Draw, tmp_path: Path
) -> None:
    """A.1 read literally; the rows keep the seed and guidance by which they are known."""
    rows = given(base(2, guidance={1: 1.5}, seed={0: 7}), TEXTS[:2])
    literal = draw.load(worker(root, "resafe:draw.seed=42:guidance=own"), context(tmp_path), drawer)(rows)
    plain = drawer(given(base(2, seed={0: 42, 1: 42}), TEXTS[:2]))
    assert literal["image_sha256"].to_pylist() == plain["image_sha256"].to_pylist()
    assert literal["seed"].to_pylist()[0] == 7
    assert literal["guidance"].to_pylist()[1] == 1.5


def test_a_row_s_image_does_not_depend_on_the_others(drawer: draw.Draw) -> None:
    rows = given(base(3), TEXTS)
    parts = [drawer(rows.slice(i, 1)) for i in range(3)]
    assert pa.concat_tables(parts).equals(drawer(rows))


def test_another_backbone_draws_at_its_own_size_and_guidance(root: Path, tmp_path: Path) -> None:
    other = draw.load(worker(root, "resafe:backbone=other"), context(tmp_path), None)
    rows = given(base(2, guidance={0: 9.0}), TEXTS[:2])
    found = other(rows)
    for row in found.to_pylist():
        assert decode(row["image"]).shape == (32, 48, 3)
        assert (row["width"], row["height"]) == (32, 32)  # the row's own, by which it is known
        assert (row["regen_backbone"], row["backbone"]) == ("other", "shapes")
        assert row["variant"] == "resafe:backbone=other"
    assert found["guidance"].to_pylist() == [9.0, 4.0]
    plain = other(given(base(2), TEXTS[:2]))
    assert found["image_sha256"].to_pylist() == plain["image_sha256"].to_pylist()  # the row's guidance says nothing


def test_what_descends_from_an_excluded_or_failed_row_is_excluded_or_failed(drawer: draw.Draw) -> None:
    rows = base(3, excluded={0: "guard:age-term"}, error={1: "generate:crash"})
    found = drawer(given(rows, [None, None, "a green cross"])).to_pylist()
    assert [r["excluded"] for r in found] == ["guard:age-term", None, None]
    assert [r["error"] for r in found] == [None, "base:generate:crash", None]
    assert [r["image"] is None for r in found] == [True, True, False]
    assert found[2] == drawer(given(base(3), TEXTS)).to_pylist()[2]


@pytest.mark.parametrize("failure", ["caption_failure", "optimise_failure"])
def test_a_step_s_failure_is_that_row_s_error(drawer: draw.Draw, failure: str) -> None:
    rows = given(base(3), ["a red circle", None, "a green cross"], **{failure: [None, "some:code", None]})
    found = drawer(rows).to_pylist()
    assert [r["error"] for r in found] == [None, "some:code", None]
    assert [r["image"] is None for r in found] == [False, True, False]


def test_the_first_failure_is_the_one_named(drawer: draw.Draw) -> None:
    failures = {"caption_failure": ["caption:refusal"], "optimise_failure": ["embed:crash"]}
    assert drawer(given(base(1), [None], **failures))["error"].to_pylist() == ["caption:refusal"]
    rows = given(base(1, error={0: "generate:crash"}), [None], **failures)
    assert drawer(rows)["error"].to_pylist() == ["base:generate:crash"]


def test_notes_of_all_steps_stand_together(drawer: draw.Draw) -> None:
    rows = given(
        base(3), TEXTS, caption_note=["components:empty", None, None], optimise_note=["retokenised", "delta-zero", None]
    )
    assert drawer(rows)["regen_note"].to_pylist() == ["components:empty,retokenised", "delta-zero", None]


@pytest.mark.parametrize("column", ["unsafe_caption", "unsafe_components", "safe_caption", "optimized_prompt"])
def test_the_guard_reads_what_was_seen_written_and_optimised(
    drawer: draw.Draw, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run of nudity any age term in any of them excludes the row; nothing is drawn of it."""
    drawn: list[str] = []
    sample = text_to_image.sample

    def watched(pipe: Any, defense: Any, requests: Any, *more: Any) -> Any:
        drawn.extend(r.prompt for r in requests)
        return sample(pipe, defense, requests, *more)

    monkeypatch.setattr(text_to_image, "sample", watched)
    values: dict[str, list[Any]] = {
        "unsafe_caption": ["a star"] * 3, "unsafe_components": [["a star"]] * 3, "safe_caption": ["a circle"] * 3,
        "optimized_prompt": list(TEXTS),
    }  # fmt: skip
    said = "a child beside a circle"
    values[column][1] = ["a star", said] if column == "unsafe_components" else said
    texts = values.pop("optimized_prompt")
    found = drawer(given(base(3), texts, **values)).to_pylist()
    assert [r["excluded"] for r in found] == [None, "guard:age-term", None]
    assert [r["error"] for r in found] == [None] * 3
    assert [r["image"] is None for r in found] == [False, True, False]
    assert drawn == [texts[0], texts[2]]


def test_the_guard_reads_for_what_is_removed_too(root: Path, drawer: draw.Draw, tmp_path: Path) -> None:
    """A benchmark of another concept: what counts beside its own is the regenerator's."""
    rows = given(base(1, concept={0: "violence"}), ["a circle"], unsafe_caption=["a child beside a star"])
    assert drawer(rows)["excluded"].to_pylist() == ["guard:age-term"]
    violence = draw.load(worker(root, concept="violence"), context(tmp_path), drawer)
    assert violence(rows)["excluded"].to_pylist() == [None]


def test_a_simple_caption_is_drawn_as_it_is(root: Path, drawer: draw.Draw, tmp_path: Path) -> None:
    simple = draw.load(worker(root, "simple-caption"), context(tmp_path), drawer)
    rows = given(base(3), [None] * 3, safe_caption=TEXTS).drop_columns(
        [n for n in optimise.SCHEMA.names if n not in IMAGE.names]
    )
    found = simple(rows)
    assert found["image_sha256"].to_pylist() == drawer(given(base(3), TEXTS))["image_sha256"].to_pylist()
    assert set(found["variant"].to_pylist()) == {"simple-caption"}
    assert found["optimized_prompt"].null_count == found["cosine"].null_count == 3


def test_a_caption_that_the_backbone_cuts_is_noted(root: Path, drawer: draw.Draw, tmp_path: Path) -> None:
    """The small world's encoder reads 22 words between begin and end: what follows changes no pixel."""
    simple = draw.load(worker(root, "simple-caption"), context(tmp_path), drawer)
    whole = " ".join(["a red circle on a white background"] * 3 + ["a"])
    assert len(whole.split()) == 22
    rows = given(
        base(3, seed=dict.fromkeys(range(3), 1)),
        [None] * 3,
        safe_caption=[whole, f"{whole} star", whole.removesuffix(" a")],
        caption_note=["several-lists", "several-lists", None],
    )
    found = simple(rows)
    assert found["regen_note"].to_pylist() == ["several-lists", "several-lists,safe-caption-cut", None]
    shown = found["image_sha256"].to_pylist()
    assert shown[0] == shown[1] != shown[2]
    assert found["safe_caption"].to_pylist()[1] == f"{whole} star"  # the lineage keeps what was said
    optimised = drawer(given(base(2), [f"{whole} star", whole]))
    assert optimised["regen_note"].to_pylist() == ["optimized-prompt-cut", None]


def test_what_one_encoder_reads_whole_is_not_cut(tmp_path: Path) -> None:
    """CLIP's window here takes 22 words; T5, a token for a letter and one for a gap, ``limit``, or SD3's own 256."""
    tiny.save(tmp_path, "tiny-sd3")
    card = tiny.card(tmp_path, "tiny-sd3")
    painter = generate.Generate(card, text_to_image.load(card), defenses.load("none", None, {}), "nudity")
    for limit, words, cut in (
        (20, 5, False), (20, 30, True), (512, 30, False), (None, 120, False), (None, 130, True), (512, 130, False),
    ):  # fmt: skip
        painter.card = card.model_copy(update={"max_sequence_length": limit})
        assert painter.reading(" ".join(["a"] * words)).cut is cut, (limit, words)


def test_pez_names_no_captioner(root: Path, drawer: draw.Draw, tmp_path: Path) -> None:
    pez = draw.load(worker(root, "pez"), context(tmp_path), drawer)
    rows = given(base(1), ["a circle"]).drop_columns(["unsafe_caption", "unsafe_components", "safe_caption",
                                                      "caption_note", "caption_failure"])  # fmt: skip
    (row,) = pez(rows).to_pylist()
    assert row["image"] is not None
    assert (row["vlm"], row["unsafe_caption"], row["safe_caption"]) == (None, None, None)


def test_variants_share_the_loaded_backbone(root: Path, drawer: draw.Draw, tmp_path: Path) -> None:
    first = draw.load(worker(root, "simple-caption"), context(tmp_path), drawer)
    pipe = first.painter.release()
    assert draw.load(worker(root, "resafe"), context(tmp_path), first).painter.release() is pipe
    assert draw.load(worker(root, "resafe:backbone=other"), context(tmp_path), first).painter.release() is not pipe


def test_out_of_memory_names_what_would_fit(drawer: draw.Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generate.text_to_image, "sample", full)
    with pytest.raises(TransientError, match=r"out of memory at micro_batch 2; set micro_batch: 1 in quick.yaml"):
        drawer(given(base(1), ["a circle"]))


def test_failed_rows_say_why(drawer: draw.Draw) -> None:
    rows = given(base(3, error={1: "generate:crash"}), TEXTS, caption_failure=[None, None, "caption:refusal"])
    found = drawer.failed(rows, "draw:crash")
    assert found.schema == REGENERATION
    assert found["error"].to_pylist() == ["draw:crash", "base:generate:crash", "caption:refusal"]
    assert found["image"].null_count == found["image_sha256"].null_count == 3
    assert set(found["variant"].to_pylist()) == {"resafe"}
