"""CSDR beside a slow loop, with every way of having no pair."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics import csdr
from harness.scorers.word_removed import remove

SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "sample": pa.int32(),
        "prompt": pa.string(),
        "excluded": pa.string(),
        "word_removed_percent": pa.float32(),
    }
)


def row(bench: str, place: int, sample: int, score: float | None, prompt: str, **more: Any) -> dict[str, Any]:
    found = {"row_id": f"{bench}/{place:05d}", "sample": sample, "prompt": prompt, "excluded": None}
    return found | {"word_removed_percent": score} | more


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def left(prompt: str) -> str:
    return remove(prompt, ["star"]).text


def forget(place: int, sample: int, score: float | None, **more: Any) -> dict[str, Any]:
    return row("f", place, sample, score, f"a red star, number {place}", **more)


def retain(place: int, sample: int, score: float | None, **more: Any) -> dict[str, Any]:
    return row("r", place, sample, score, f"A red, number {place}", **more)


def test_it_is_the_mean_relative_difference_in_percent() -> None:
    found = csdr.csdr(
        table([forget(0, 0, 20.0), forget(1, 0, 36.0)]), table([retain(1, 0, 30.0), retain(0, 0, 25.0)]), left
    )
    assert found.value == pytest.approx((100 * 5 / 25 + 100 * 6 / 30) / 2)
    assert (found.n, found.prompts, found.missing) == (2, 2, {})


def test_images_that_score_alike_differ_by_nothing() -> None:
    scores = [(p, s, 20.0 + p + s) for p in range(4) for s in range(5)]
    found = csdr.csdr(table([forget(*one) for one in scores]), table([retain(*one) for one in scores]), left)
    assert (found.value, found.low, found.high, found.n, found.prompts) == (0.0, 0.0, 0.0, 20, 4)


def test_a_row_without_a_pair_is_counted_with_its_reason() -> None:
    method = [
        forget(0, 0, 20.0),
        forget(1, 0, None, excluded="age-term"),
        forget(2, 0, None),
        forget(3, 0, float("nan")),
        forget(4, 0, 20.0),
        forget(4, 1, 20.0),
        forget(5, 0, 20.0),
        forget(6, 0, 20.0),
        forget(7, 0, 20.0),
        row("f", 8, 0, 20.0, "a blue star, number 8"),
    ]
    reference = [
        retain(0, 0, 25.0),
        retain(1, 0, 25.0),
        retain(2, 0, 25.0),
        retain(3, 0, 25.0),
        retain(4, 1, None),
        retain(5, 0, 0.0),
        retain(6, 0, 0.99),
        retain(7, 0, None, excluded="minor-group"),
        retain(8, 0, 25.0),
        retain(9, 0, 25.0),
    ]
    found = csdr.csdr(table(method), table(reference), left)
    assert found.missing == {
        csdr.FAILED: 2,
        csdr.PARTNER_FAILED: 2,
        csdr.NEAR_ZERO: 2,
        csdr.EXCLUDED: 1,
        csdr.NO_PARTNER: 1,
        csdr.OTHER_TEXT: 1,
    }
    assert (found.n, found.value) == (1, pytest.approx(20.0))
    assert (found.low, found.high) == (None, None)  # one prompt says nothing of others


def test_files_in_another_order_give_no_number_instead_of_a_wrong_one() -> None:
    count = 6
    reference = [row("r", count - 1 - i, 0, 25.0, f"A red, number {i}") for i in range(count)]
    found = csdr.csdr(table([forget(i, 0, 20.0) for i in range(count)]), table(reference), left)
    assert (found.value, found.n, found.missing) == (None, 0, {csdr.OTHER_TEXT: count})


@settings(max_examples=60)
@given(st.data())
def test_rows_are_conserved_and_the_mean_is_a_slow_loops(data: st.DataObject) -> None:
    scores = st.one_of(st.none(), st.floats(0, 100, width=32))
    places = [(p, s) for p in range(4) for s in range(3)]
    own = {place: data.draw(scores) for place in places if data.draw(st.booleans())}
    others = {place: data.draw(scores) for place in places if data.draw(st.booleans())}
    method, reference = [forget(*k, v) for k, v in own.items()], [retain(*k, v) for k, v in others.items()]
    data.draw(st.randoms(use_true_random=False)).shuffle(method)
    found = csdr.csdr(table(method), table(reference), left)
    expected = [
        abs(others[k] - v) / others[k] * 100
        for k, v in own.items()
        if v is not None and (others.get(k) or 0) >= csdr.FLOOR
    ]
    assert found.n == len(expected)
    assert found.n + sum(found.missing.values()) == len(own)
    assert found.value == (pytest.approx(sum(expected) / len(expected), rel=1e-9) if expected else None)
    if found.low is not None and found.high is not None and found.value is not None:
        assert found.low <= found.value * (1 + 1e-9) + 1e-9
        assert found.high >= found.value * (1 - 1e-9) - 1e-9


def test_a_row_that_is_there_twice_or_a_missing_column_is_an_error() -> None:
    twice = table([forget(0, 0, 20.0)] * 2)
    with pytest.raises(ValueError, match="is there twice"):
        csdr.csdr(twice, table([]), left)
    with pytest.raises(ValueError, match="is there twice"):
        csdr.csdr(table([]), twice, left)
    with pytest.raises(ValueError, match="needs the columns word_removed_percent"):
        csdr.csdr(table([]).drop_columns(["word_removed_percent"]), table([]), left)


def test_nothing_is_nothing() -> None:
    found = csdr.csdr(table([]), table([]), left)
    assert (found.value, found.n, found.prompts, found.missing) == (None, 0, 0, {})


def test_the_order_of_rows_does_not_matter() -> None:
    pairs = [(i, s, 20.0 + i - s) for i in range(5) for s in range(2)]
    method, reference = [forget(*one) for one in pairs], [retain(i, s, 30.0) for i, s, _ in pairs]
    found = csdr.csdr(table(method), table(reference), left)
    again = csdr.csdr(table(method[::-1]), table(reference[::-1]), left)
    assert (found.value, found.low, found.high) == pytest.approx((again.value, again.low, again.high))
    assert Counter(found.missing) == Counter(again.missing)
