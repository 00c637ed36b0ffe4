"""The rows of a page: what is packed is read back as scores and policies give it, and no text comes along."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from html_samples import POLICIES, SECRET, rows
from hypothesis import given
from hypothesis import strategies as st
from parsed_page import Page, columns_of

from harness.metrics.cells import result_groups
from harness.metrics.policies import verdicts
from harness.report.html import rows as packing


def unpacked(packed: packing.Packed) -> dict[str, list[Any]]:
    """The columns, through an element as the page has it."""
    text = f'<script id="about">{json.dumps(packed.about)}</script><script id="rows-data">{packed.data}</script>'
    return columns_of(Page(text))


def test_rows_and_verdicts_are_those_of_the_scores() -> None:
    scores = rows(20)
    own = list(result_groups(scores))
    columns = unpacked(packing.pack(own, POLICIES))
    assert columns["row"] == [i for part in own for i in part.rows["row_id"].to_pylist()]
    for policy in POLICIES["nudity"]:
        assert columns[policy.name] == [v for part in own for v in verdicts(policy, part.rows).to_pylist()]
        levels = [v for part in own for v in part.rows["nudenet_a"].to_pylist()]  # the higher of the two labels
        for level, kept in zip(levels, columns[packing.highest(policy.name)], strict=True):
            assert (kept is None) == (level is None)
            assert level is None or abs(kept - level) <= 0.5e-4 + 1e-9
    assert columns["excluded"].count("age-term") == 4
    assert columns["seed"][:2] == [2**40, 2**40 + 1]


def test_no_text_of_a_prompt_or_caption_is_packed_unless_asked() -> None:
    own = list(result_groups(rows()))
    packed = packing.pack(own, POLICIES)
    assert SECRET not in json.dumps(packed.about)
    assert SECRET.encode() not in zlib.decompress(base64.b64decode(packed.data))
    asked = json.loads(zlib.decompress(base64.b64decode(packing.texts(own))))
    prompts = [asked["prompt"]["texts"][i] for i in asked["prompt"]["rows"]]
    assert prompts == [p for part in own for p in part.rows["prompt"].to_pylist()]
    assert asked["unsafe_components"]["texts"] == [SECRET]


def test_names_of_imported_files_are_numbers_unless_asked() -> None:
    scores = rows(methods=[("imported", "base"), ("imported", "resafe")])
    own = list(result_groups(scores))
    assert packing.pack(own, POLICIES).about["ids"] == [f"image {i}" for i in range(1, 9)]
    assert packing.pack(own, POLICIES, named=True).about["ids"] == scores["row_id"].to_pylist()[:8]


def test_samples_of_a_prompt_are_told_apart() -> None:
    scores = pa.concat_tables([rows(2), rows(2, sample=1)])
    assert packing.pack(list(result_groups(scores)), POLICIES).about["ids"] == [
        "b/00000",
        "b/00001",
        "b/00000 #1",
        "b/00001 #1",
    ]


def test_what_finds_no_room_is_named_and_what_decides_stays() -> None:
    own = list(result_groups(rows(50)))
    whole = packing.pack(own, POLICIES)
    assert not whole.left_out
    less = packing.pack(own, POLICIES, most=200 * (4 + 1 + 2 + 1))
    kept = [c["name"] for c in less.about["columns"]]
    assert kept[:3] == ["row", "resafe-nudity-0.45", packing.highest("resafe-nudity-0.45")]
    assert {*kept, *less.left_out} == {c["name"] for c in whole.about["columns"]}
    assert not {*kept} & {*less.left_out}
    unpacked(less)


NUMBERS = st.one_of(
    st.floats(0, 1, width=32), st.floats(-1e4, 1e4), st.integers(-5, 300).map(float), st.just(math.nan),
    st.integers(0, 2**53 - 1).map(float),
)  # fmt: skip


@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_a_number_is_read_back_to_the_step_that_its_column_states(values: list[float]) -> None:
    column = packing._number("x", np.array(values))
    if column is None:
        assert all(map(math.isnan, values))
        return
    about = {"columns": [{**column.about, "type": column.values.dtype.str.strip("<|")}], "rows": len(values), "ids": []}
    data = base64.b64encode(zlib.compress(column.values.tobytes())).decode()
    read = unpacked(packing.Packed(about, data, ()))["x"]
    there = [v for v in values if not math.isnan(v)]
    for value, kept in zip(values, read, strict=True):
        assert (kept is None) == math.isnan(value)
        if kept is None:
            continue
        if column.about["kind"] == "number":
            step = 10.0 ** -column.about["digits"]
            assert abs(kept - value) <= step / 2 * 1.000001 + 1e-9
            assert step <= max(1e-4, (max(there) - min(there)) / 6_553) or step == 1
        else:
            assert kept == pytest.approx(value, rel=1e-6)


def test_whole_numbers_without_an_exact_float_are_left_out() -> None:
    assert packing._number("seed", np.array([1.0, 2.0**60])) is None
