"""The score stage: columns and their names, what stands beside an image, rows without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from base_rows import base, image

from harness import scorers
from harness.errors import UserError
from harness.pipeline.stages import score
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.images import encode
from harness.store.schema import KEY
from harness.store.shards import Store


def load(stem: str, reference: str | None = None) -> score.Score:
    return score.Score(stem, {}, reference)


def compared(rows: pa.Table, references: list[Any], hashes: list[str | None] | None = None) -> pa.Table:
    """Rows beside the encoded reference images, as the base of all stages hands them over."""
    known = ["a hash" if r is not None else None for r in references] if hashes is None else hashes
    rows = rows.append_column("reference", pa.array(references, pa.binary()))
    return rows.append_column("reference_sha256", pa.array(known, pa.string()))


def test_columns_are_the_scorer_s_own_beside_the_row_s_key() -> None:
    rows = base(3)
    found = load("shapes_oracle")(rows)
    assert found.schema == score.schema("shapes_oracle")
    assert found.column_names == [*KEY, "shapes_oracle_error", *scorers.columns("shapes_oracle")]
    assert found.select(list(KEY)).equals(rows.select(list(KEY)))
    assert found["shapes_oracle_star"].null_count == 0


def test_rows_without_an_image_have_no_score_and_no_error() -> None:
    rows = base(4, excluded={0: "guard:age-term"}, error={2: "generate:crash"})
    found = load("shapes_oracle")(rows)
    assert [v is None for v in found["shapes_oracle_star"].to_pylist()] == [True, False, True, False]
    assert found["shapes_oracle_error"].null_count == 4
    whole = load("shapes_oracle")(base(4))
    assert found.slice(3, 1).equals(whole.slice(3, 1))


def test_an_undecodable_image_is_its_row_s_error_and_costs_no_other() -> None:
    found = load("shapes_oracle")(base(3, image={1: b"no image"}))
    assert found["shapes_oracle_error"].to_pylist() == [None, "undecodable", None]
    assert [v is None for v in found["shapes_oracle_star"].to_pylist()] == [False, True, False]


def test_an_image_that_the_scorer_refuses_is_its_row_s_error() -> None:
    found = load("shapes_oracle")(base(2, image={0: encode(image(0, side=48))}))
    assert found["shapes_oracle_error"].to_pylist() == ["image-size", None]


def test_a_pair_scorer_s_columns_name_its_reference() -> None:
    rows = compared(base(2), [encode(image(0)), encode(image(0))])
    found = load("ssim", "same/base")(rows)
    assert found.column_names == [
        *KEY, "ssim_error@same/base", *(f"{name}@same/base" for name in scorers.columns("ssim")),
    ]  # fmt: skip
    first = f"{next(iter(scorers.columns('ssim')))}@same/base"
    same, other = found[first].to_pylist()
    assert same == pytest.approx(1)
    assert other < 0.5


def test_each_image_is_compared_with_its_own_reference() -> None:
    """In another order than the images, and with gaps on either side: each pair as it is alone."""
    images = [image(i) for i in range(5)]
    references: list[Any] = [encode(images[i]) for i in (1, 0, 2, 4, 3)]
    references[1] = None
    rows = compared(base(5, error={4: "generate:crash"}), references)
    stage = load("ssim", "none/base")
    found = stage(rows)
    assert found.equals(pa.concat_tables([stage(rows.slice(i, 1)) for i in range(5)]))
    first = f"{next(iter(scorers.columns('ssim')))}@none/base"
    assert [v is None for v in found[first].to_pylist()] == [False, True, False, False, True]
    assert found[first][2].as_py() == pytest.approx(1)
    assert found["ssim_error@none/base"].null_count == 5


def test_a_pair_that_cannot_be_compared_is_its_row_s_error() -> None:
    rows = compared(base(2), [encode(image(0)), encode(image(1, side=48))])
    found = load("shapes_kept", "same/base")(rows)
    assert found["shapes_kept_error@same/base"].to_pylist() == [None, "reference-image-size"]


def test_a_scorer_that_reads_prompts_gets_the_row_s_own() -> None:
    rows = base(3, prompt={0: "a star", 1: "a blue circle on a white background"}, error={2: "generate:crash"})
    found = load("shapes_clip_score")(rows)
    name = next(iter(scorers.columns("shapes_clip_score")))
    images = [image(0), image(1)]
    expected = scorers.load("shapes_clip_score")(images, ["a star", "a blue circle on a white background"])[name]
    assert found[name].to_pylist()[:2] == pytest.approx(expected)
    swapped = scorers.load("shapes_clip_score")(images, ["a blue circle on a white background", "a star"])[name]
    assert not np.allclose(expected, swapped)
    assert found[name][2].as_py() is None


@pytest.mark.parametrize("missing", ["the image", "the reference"])
def test_discarded_images_are_asked_for(missing: str) -> None:
    whole: Any = encode(image(0))
    rows = (
        compared(base(1, image={0: None}), [whole]) if missing == "the image" else compared(base(1), [None], ["a hash"])
    )
    with pytest.raises(UserError, match="discarded"):
        load("ssim", "same/base")(rows)


def test_failed_rows_say_why_under_the_reference_s_name() -> None:
    plain, paired = load("shapes_oracle").failed(base(2), "crash"), load("ssim", "same/base").failed(base(2), "crash")
    assert plain["shapes_oracle_error"].to_pylist() == ["crash"] * 2
    assert paired["ssim_error@same/base"].to_pylist() == ["crash"] * 2
    assert paired.schema == score.schema("ssim", "same/base")
    assert "ssim_error" not in paired.column_names


def test_a_loaded_scorer_is_kept_for_the_same_question_only(tmp_path: Path) -> None:
    context = WorkerContext(store=Store(tmp_path / "store"), run=tmp_path / "run")

    def asked(stem: str, reference: str | None, previous: score.Score | None) -> score.Score:
        return score.load({"scorer": stem, "params": {}, "reference": reference}, context, previous)

    first = asked("ssim", "same/base", None)
    assert asked("ssim", "same/base", first) is first
    other = asked("ssim", "none/base", first)
    assert other is not first
    assert other.reference == "none/base"
    assert asked("shapes_oracle", None, first).stem == "shapes_oracle"
