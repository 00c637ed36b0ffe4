"""Scorers are found by their file's stem, and one bad image is no other's business."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import scorers
from harness.errors import RowError, UserError
from harness.scorers import batching


def test_every_scorer_is_found_by_its_stem() -> None:
    assert {"nudenet", "shapes_classifier", "shapes_oracle"} <= set(scorers.names())
    assert "degenerate" not in scorers.names()


@pytest.mark.parametrize("stem", scorers.names())
def test_columns_carry_the_stem_and_an_arrow_type(stem: str) -> None:
    columns = scorers.columns(stem)
    assert columns
    for name, kind in columns.items():
        assert name.startswith(f"{stem}_")
        assert name != f"{stem}_error"
        assert isinstance(kind, pa.DataType)
    assert scorers.libraries(stem)
    assert not (scorers.pair(stem) and scorers.text(stem))


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("nudnet", r"unknown scorer 'nudnet'; did you mean 'nudenet'\?"),
        ("degenerate", "unknown scorer 'degenerate'"),
        ("no/such", "unknown scorer 'no/such'"),
        ("", "unknown scorer ''"),
    ],
)
def test_an_unknown_scorer_is_refused_with_the_nearest(stem: str, message: str) -> None:
    for ask in (scorers.columns, scorers.weights, scorers.load):
        with pytest.raises(UserError, match=message):
            ask(stem)


def test_columns_and_names_load_no_model_library() -> None:
    code = (
        "import sys; from harness import scorers\n"
        "for stem in scorers.names(): scorers.columns(stem), scorers.libraries(stem)\n"
        "scorers.weights('nudenet')\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'cv2', 'nudenet', 'scipy', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def mean_scores(batch: list[float]) -> list[dict[str, Any]]:
    assert len(batch) == 4  # the micro-batch, partial ones padded
    return [{"shapes_oracle_star": value} for value in batch]


def mean(image: batching.Image) -> float:
    if image[0, 0, 0] == 0:
        raise RowError("too-dark")
    return float(image.mean())


@given(st.lists(st.integers(0, 255), max_size=14))
def test_bad_images_cost_no_other_its_scores(levels: list[int]) -> None:
    images = [np.full((2, 2, 3), level, dtype=np.uint8) for level in levels]
    found = batching.in_micro_batches("shapes_oracle", images, mean, mean_scores, 4)
    assert found["shapes_oracle_star"] == [float(level) if level else None for level in levels]
    assert found["shapes_oracle_error"] == [None if level else "too-dark" for level in levels]
    assert found["shapes_oracle_scene"] == [None] * len(levels)


def differences(batch: list[float]) -> list[dict[str, Any]]:
    assert len(batch) == 4
    return [{"shapes_oracle_star": value} for value in batch]


def difference(image: batching.Image, reference: batching.Image) -> float:
    if image.shape != reference.shape:
        raise RowError("sizes-differ")
    return float(image.mean()) - float(reference.mean())


def plain(level: int, size: int = 2) -> batching.Image:
    return np.full((size, size, 3), level, dtype=np.uint8)


@given(st.lists(st.tuples(st.integers(0, 255), st.none() | st.integers(0, 255)), max_size=14))
def test_an_image_without_a_reference_has_no_score_and_no_error(levels: list[tuple[int, int | None]]) -> None:
    found = batching.pairs_in_micro_batches(
        "shapes_oracle",
        [plain(a) for a, _ in levels],
        [None if b is None else plain(b) for _, b in levels],
        difference,
        differences,
        4,
    )
    assert found["shapes_oracle_star"] == [None if b is None else float(a - b) for a, b in levels]
    assert found["shapes_oracle_error"] == [None] * len(levels)


def test_a_bad_pair_costs_no_other_its_scores() -> None:
    grey, bad = plain(7), np.zeros((2, 2), np.uint8)
    found = batching.pairs_in_micro_batches(
        "shapes_oracle",
        [grey, bad, grey, grey, bad],
        [plain(3), grey, bad, plain(7, 3), None],
        difference,
        differences,
        4,
    )
    assert found["shapes_oracle_star"] == [4.0, None, None, None, None]
    codes = [None, "not-an-image", "reference-not-an-image", "sizes-differ", None]
    assert found["shapes_oracle_error"] == codes


def test_an_image_without_a_text_has_no_score_and_no_error() -> None:
    found = batching.texts_in_micro_batches(
        "shapes_oracle",
        [plain(1), plain(2), plain(3), np.zeros((2, 2), np.uint8)],
        ["a", None, "", "b"],
        lambda image, text: float(image.mean()) + len(text),
        differences,
        4,
    )
    assert found["shapes_oracle_star"] == [2.0, None, 3.0, None]
    assert found["shapes_oracle_error"] == [None, None, None, "not-an-image"]


def test_as_many_references_and_texts_as_images() -> None:
    with pytest.raises(ValueError):  # noqa: PT011, the words are Python's
        batching.pairs_in_micro_batches("shapes_oracle", [plain(1)], [plain(1)] * 2, difference, differences, 4)
    with pytest.raises(ValueError):  # noqa: PT011
        batching.texts_in_micro_batches("shapes_oracle", [plain(1)], [], lambda i, t: 0.0, differences, 4)
