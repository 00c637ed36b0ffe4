"""The caption stage: whose images are described, how answers are read, whom a refusal costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from base_rows import base, image
from numpy.typing import NDArray

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.errors import RowError, TransientError, UserError
from harness.models import vision_language
from harness.models.vision_language import Turn
from harness.pipeline.stages import caption as stage
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.images import encode
from harness.regenerators import questions
from harness.regenerators import questions_shapes as shapes
from harness.shapes import world
from harness.store.schema import KEY
from harness.store.shards import Store

THREE = questions.turns("paper", "nudity")
TWO = questions.turns("paper", "van-gogh")


class Table:
    """A captioner that answers from a table, by what the image's first pixel says."""

    micro_batch = 16

    def __init__(self, answers: dict[int, list[str]]) -> None:
        self.answers = answers
        self.seen: list[int] = []

    def converse(self, images: Sequence[NDArray[np.uint8]], asked: Sequence[Turn]) -> list[list[str]]:
        self.seen = [int(pixels[0, 0, 0]) for pixels in images]
        for pixels in images:
            assert (pixels == image(int(pixels[0, 0, 0]))).all()
        assert all(len(self.answers[i]) == len(asked) for i in self.seen)
        return [self.answers[i] for i in self.seen]


def captions(
    answers: dict[int, list[str]], rows: pa.Table, concept: str = "nudity"
) -> tuple[list[dict[str, Any]], Table]:
    """The stage's rows, and the captioner that was asked."""
    captioner = Table(answers)
    worker = stage.Caption(
        captioner,
        {"source": "a table"},
        questions.turns("paper", concept),
        questions.given("paper", concept),  # type: ignore[arg-type]
    )
    found = worker(rows)
    assert found.schema == stage.SCHEMA
    assert found.select(list(KEY)).equals(rows.select(list(KEY)))
    return found.to_pylist(), captioner


def plain(i: int) -> list[str]:
    return [f"image {i} of a figure", "['figure']", f"image {i}"]


def test_each_image_has_its_own_answers() -> None:
    rows, captioner = captions({i: plain(i) for i in range(3)}, base(3))
    assert captioner.seen == [0, 1, 2]
    assert [r["unsafe_caption"] for r in rows] == [f"image {i} of a figure" for i in range(3)]
    assert [r["unsafe_components"] for r in rows] == [["figure"]] * 3
    assert [r["safe_caption"] for r in rows] == [f"image {i}" for i in range(3)]
    assert [(r["caption_note"], r["caption_failure"]) for r in rows] == [(None, None)] * 3


def test_excluded_and_failed_rows_are_not_shown_to_anyone() -> None:
    rows, captioner = captions(
        {i: plain(i) for i in (0, 3)}, base(4, excluded={1: "guard:age-term"}, error={2: "generate:crash"})
    )
    assert captioner.seen == [0, 3]
    assert [r["safe_caption"] for r in rows] == ["image 0", None, None, "image 3"]
    assert [r["caption_failure"] for r in rows] == [None] * 4  # they have failed where they were drawn


def test_without_images_nobody_is_asked() -> None:
    rows, captioner = captions({}, base(2, error={0: "crash", 1: "crash"}))
    assert captioner.seen == []
    assert [r["unsafe_caption"] for r in rows] == [None, None]


@pytest.mark.parametrize(
    ("listed", "components", "note"),
    [
        ("[]", [], "components:empty"),
        ("There are no such elements.", [], "components:no-list,components:empty"),
        ("Here is the list:\n```python\n['a', 'b']\n```\nI hope this helps.", ["a", "b"], None),
        ("a, b", ["a", "b"], "components:no-list"),
        ("I'm sorry, but I can't help with that.", [], "components:refusal"),
        ("['a', 'b", ["a", "b"], "components:list-cut"),
    ],
)
def test_a_list_is_read_as_it_comes_and_the_row_says_how(listed: str, components: list[str], note: str | None) -> None:
    rows, _ = captions({0: ["one", listed, "two"]}, base(1))
    assert rows[0]["unsafe_components"] == components
    assert rows[0]["caption_note"] == note
    assert rows[0]["caption_failure"] is None  # the captions are there, and they are what is compared


@pytest.mark.parametrize("refused", [0, 2])
@pytest.mark.parametrize("said", ["I'm sorry, but I can't assist with that.", "", "  \n"])
def test_a_refused_caption_is_its_row_s_failure_and_costs_nobody_else(refused: int, said: str) -> None:
    answers = {i: plain(i) for i in range(3)}
    answers[1][refused] = said
    rows, _ = captions(answers, base(3))
    assert [r["caption_failure"] for r in rows] == [None, "caption:refusal", None]
    assert [r["safe_caption"] for r in rows][::2] == ["image 0", "image 2"]


def test_an_artist_is_known_without_asking() -> None:
    rows, _ = captions({0: ["a starry night", "a night"]}, base(1), "van-gogh")
    assert rows[0]["unsafe_components"] == ["Van Gogh"]
    assert (rows[0]["unsafe_caption"], rows[0]["safe_caption"]) == ("a starry night", "a night")


def test_discarded_images_are_asked_for() -> None:
    with pytest.raises(UserError, match="discarded"):
        captions({}, base(2, image={1: None}))


def test_an_undecodable_image_is_a_row_s_error() -> None:
    with pytest.raises(RowError, match="undecodable"):
        captions({0: plain(0)}, base(1, image={0: b"no image"}))


def test_out_of_memory_is_no_row_s_error_and_names_what_would_fit() -> None:
    class Full(Table):
        def converse(self, images: Sequence[NDArray[np.uint8]], asked: Sequence[Turn]) -> list[list[str]]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    worker = stage.Caption(Full({}), {}, THREE, None)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match=r"out of memory at micro_batch 16; set micro_batch: 8 in the captioner's"):
        worker(base(2))


def test_failed_rows_say_why() -> None:
    rows = base(2)
    failed = stage.Caption(Table({}), {}, THREE, None).failed(rows, "caption:crash")  # type: ignore[arg-type]
    assert failed.schema == stage.SCHEMA
    assert failed.select(list(KEY)).equals(rows.select(list(KEY)))
    assert failed["caption_failure"].to_pylist() == ["caption:crash"] * 2
    assert failed["safe_caption"].null_count == 2


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    return WorkerContext(store=Store(tmp_path / "store"), run=tmp_path / "run")


def _worker(concept: str, **held: Any) -> dict[str, Any]:
    card = load_card(JudgeCard, "shapes-captioner", card_roots())
    params = {"source": card.source, "revision": None, "dtype": card.dtype, "micro_batch": card.micro_batch} | held
    return {"vlm": params, "edition": "shapes", "concept": concept, "lengths": {}}


def test_the_shapes_captioner_sees_the_star_and_leaves_it_out(context: WorkerContext) -> None:
    """The real small model on images of the world it knows, through the stage as a run loads it."""
    worker = stage.load(_worker("nudity"), context, None)
    rows = base(3)
    scenes = [
        world.Scene((world.Object("star", colour), world.Object("square", "blue")), "left of", "white", "plain")
        for colour in ("red", "green", "yellow")
    ]
    drawn = [encode(np.asarray(world.render(scene, random.Random(i)))) for i, scene in enumerate(scenes)]
    rows = rows.set_column(rows.column_names.index("image"), "image", pa.array(drawn, pa.binary()))
    for row, scene in zip(worker(rows).to_pylist(), scenes, strict=True):
        said, listed, safe = shapes.answers(scene, "nudity")
        assert row["unsafe_caption"] == said
        assert str(row["unsafe_components"]) == listed
        assert row["safe_caption"] == safe
        assert row["caption_failure"] is None


def test_a_captioner_is_loaded_once_for_all_its_questions(context: WorkerContext) -> None:
    first = stage.load(_worker("nudity"), context, None)
    assert stage.load(_worker("violence"), context, first).captioner is first.captioner
    assert isinstance(first.captioner, vision_language.Captioner)
    other = stage.load(_worker("nudity", micro_batch=2), context, first)
    assert other.captioner is not first.captioner
    assert other.captioner.micro_batch == 2
