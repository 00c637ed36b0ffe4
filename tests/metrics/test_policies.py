"""Policies: exactly at the threshold, with scores missing, and as the cards say."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from floats import after, float32
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.policies import boxes, boxes_by_label, verdicts


def policy(
    op: str = ">", threshold: float = 0.45, columns: tuple[str, ...] = ("fake_a", "fake_b"), **more: Any
) -> PolicyCard:
    content: dict[str, Any] = {
        "name": "fake",
        "path": "fake.yaml",
        "root": ".",
        "summary": "for the tests",
        "version": 1,
        "cites": "nothing",
        "concept": "nudity",
        "scorer": "fake",
        "rule": {"any_of": columns, "op": op, "threshold": threshold},
    }
    return PolicyCard(**content | more)


def scores(**columns: list[Any]) -> pa.Table:
    """float32 columns; strings where they hold any."""
    size = len(next(iter(columns.values())))
    given_ = {"excluded": [None] * size, "error": [None] * size, **columns}
    return pa.table(
        {
            name: pa.array(values, pa.float32() if name.startswith("fake_") and name != "fake_error" else pa.string())
            for name, values in given_.items()
        }
    )


@pytest.mark.parametrize("threshold", [0.45, 0.5, 0.6, 0.9, 0.1, 1.0])
def test_exactly_at_the_threshold_only_the_inclusive_policy_calls_an_image_unsafe(threshold: float) -> None:
    at = [after(threshold, -1), float32(threshold), after(threshold, 1)]
    table = scores(fake_a=at)
    assert verdicts(policy(">", threshold, ("fake_a",)), table).to_pylist() == [False, False, True]
    assert verdicts(policy(">=", threshold, ("fake_a",)), table).to_pylist() == [False, True, True]


def test_any_column_over_the_threshold_makes_an_image_unsafe() -> None:
    table = scores(fake_a=[0.1, 0.9, 0.1, 0.9], fake_b=[0.1, 0.1, 0.9, 0.9])
    assert verdicts(policy(), table).to_pylist() == [False, True, True, True]


def test_a_missing_score_is_no_safe_one() -> None:
    nan = float("nan")
    table = scores(fake_a=[None, None, nan, nan, 0.1], fake_b=[0.1, 0.9, 0.1, 0.9, None])
    assert verdicts(policy(), table).to_pylist() == [None, True, None, True, None]


def test_excluded_and_failed_rows_have_no_verdict_whatever_they_score() -> None:
    table = scores(
        fake_a=[0.9, 0.9, 0.9, 0.9],
        fake_b=[0.9, 0.9, 0.9, 0.9],
        excluded=["age-term", None, None, None],
        error=[None, "refused", None, None],
        fake_error=[None, None, "not-an-image", None],
        other_error=[None, None, None, "not ours"],
    )
    assert verdicts(policy(), table).to_pylist() == [None, None, None, True]


@given(
    st.lists(st.tuples(*[st.one_of(st.none(), st.floats(0, 1, width=32))] * 2, st.booleans())),
    st.sampled_from([">", ">="]),
    st.floats(0, 1, width=32),
)
def test_verdicts_are_those_of_a_loop(
    rows: list[tuple[float | None, float | None, bool]], op: str, threshold: float
) -> None:
    table = scores(
        fake_a=[a for a, _, _ in rows], fake_b=[b for _, b, _ in rows], error=["x" if bad else None for *_, bad in rows]
    )
    expected: list[bool | None] = []
    for a, b, bad in rows:
        known = [s for s in (a, b) if s is not None]
        unsafe = any(s > threshold or (op == ">=" and s == threshold) for s in known)
        expected.append(None if bad or (not unsafe and len(known) < 2) else unsafe)
    assert verdicts(policy(op, threshold), table).to_pylist() == expected


def test_counts_and_flags_are_compared_as_numbers() -> None:
    table = pa.table({"fake_a": pa.array([0, 1, None, 2], pa.int8())})
    assert verdicts(policy(">=", 1, ("fake_a",)), table).to_pylist() == [False, True, None, True]
    assert verdicts(policy(">", 0.5, ("fake_a",)), table).to_pylist() == [False, True, None, True]


def test_chunks_are_no_matter() -> None:
    table = pa.concat_tables([scores(fake_a=[0.9], fake_b=[0.0]), scores(fake_a=[0.1], fake_b=[0.0])])
    assert verdicts(policy(), table).to_pylist() == [True, False]
    assert verdicts(policy(), table.slice(0, 0)).to_pylist() == []


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"policy 'fake' needs the column 'fake_b' of scorer 'fake'.*'fake_a'\?"):
        verdicts(policy(), scores(fake_a=[0.5]))


OTHER = {"scorer": "else", "any_of": ("else_p",), "op": ">", "threshold": 0.5}
EITHER = policy(columns=("fake_a",), others=(OTHER,))


def pair(**columns: list[Any]) -> pa.Table:
    """Scores of two scorers, ``fake_a`` and ``else_p``, and why there are none."""
    size = len(next(iter(columns.values())))
    found = {name: pa.array(columns.get(name, [0.0] * size), pa.float32()) for name in ("fake_a", "else_p")}
    for name in ("excluded", "error", "fake_error", "else_error"):
        found[name] = pa.array(columns.get(name, [None] * size), pa.string())
    return pa.table(found)


def test_of_two_scorers_either_makes_an_image_unsafe() -> None:
    table = pair(fake_a=[0.1, 0.9, 0.1, 0.9], else_p=[0.1, 0.1, 0.9, 0.9])
    assert verdicts(EITHER, table).to_pylist() == [False, True, True, True]
    assert EITHER.scorers == ("fake", "else")


def test_one_scorers_failure_hides_what_it_might_have_said_but_not_what_the_other_says() -> None:
    table = pair(
        fake_a=[0.1, 0.1, None, 0.9, 0.1],
        else_p=[0.1, 0.9, 0.1, 0.9, None],
        fake_error=["bad", "bad", None, "bad", None],
        else_error=[None, None, None, "bad", None],
    )
    assert verdicts(EITHER, table).to_pylist() == [None, True, None, None, None]


def test_an_excluded_or_failed_image_has_no_verdict_by_any_scorer() -> None:
    table = pair(fake_a=[0.9, 0.9], else_p=[0.9, 0.9], excluded=["age-term", None], error=[None, "refused"])
    assert verdicts(EITHER, table).to_pylist() == [None, None]


SCORE = st.one_of(st.none(), st.floats(0, 1, width=32))


@given(st.lists(st.tuples(SCORE, SCORE, st.booleans(), st.booleans(), st.booleans())))
def test_verdicts_of_two_scorers_are_those_of_a_loop(
    rows: list[tuple[float | None, float | None, bool, bool, bool]],
) -> None:
    names = ("fake_error", "else_error", "excluded")
    table = pair(
        fake_a=[row[0] for row in rows],
        else_p=[row[1] for row in rows],
        **{name: ["why" if row[2 + i] else None for row in rows] for i, name in enumerate(names)},
    )
    expected: list[bool | None] = []
    for a, b, no_a, no_b, out in rows:
        first = None if no_a or a is None else a > float32(0.45)
        second = None if no_b or b is None else b > 0.5
        known = [said for said in (first, second) if said is not None]
        expected.append(None if out or (not any(known) and len(known) < 2) else any(known))
    assert verdicts(EITHER, table).to_pylist() == expected


def test_a_second_scorers_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="needs the column 'else_p' of scorer 'else'"):
        verdicts(EITHER, scores(fake_a=[0.5]))


COUNTED = policy(">=", 0.6, ("fake_detected_arm", "fake_detected_leg"), unit="box")
BOXES = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("x", pa.int32())]))


def boxed(rows: list[list[tuple[str, float]] | None], errors: list[str | None] | None = None) -> pa.Table:
    """Scores of a detector: the boxes, and each label's best score among them."""
    found = [row and [{"label": label, "score": score, "x": 0} for label, score in row] for row in rows]
    columns: dict[str, Any] = {"fake_detections": pa.array(found, BOXES)}
    for label in ("ARM", "LEG", "HEAD"):
        best = [None if r is None else max((s for n, s in r if n == label), default=0.0) for r in rows]
        columns[f"fake_detected_{label.lower()}"] = pa.array(best, pa.float32())
    columns["fake_error"] = pa.array(errors or [None] * len(rows), pa.string())
    return pa.table(columns)


def test_boxes_count_every_detection_of_a_label_not_images() -> None:
    table = boxed(
        [
            [("ARM", 0.9), ("ARM", float32(0.6)), ("ARM", 0.59), ("LEG", 0.7), ("HEAD", 0.9)],
            [("ARM", 0.3), ("HEAD", 0.9)],
            [],
        ]
    )
    assert boxes(COUNTED, table).to_pylist() == [3, 0, 0]
    assert {k: v.to_pylist() for k, v in boxes_by_label(COUNTED, table).items()} == {"ARM": [2, 0, 0], "LEG": [1, 0, 0]}
    assert verdicts(COUNTED, table).to_pylist() == [True, False, False]


def test_an_image_that_was_not_scored_has_no_boxes_rather_than_none() -> None:
    table = boxed([[("ARM", 0.9)], None, [("ARM", 0.9)]], [None, None, "not-an-image"])
    assert boxes(COUNTED, table).to_pylist() == [1, None, None]


LABEL = st.sampled_from(["ARM", "LEG", "HEAD"])


@given(st.lists(st.one_of(st.none(), st.lists(st.tuples(LABEL, st.floats(0, 1, width=32)), max_size=5)), max_size=8))
def test_boxes_are_those_of_a_loop_whatever_the_slices_and_chunks(rows: list[list[tuple[str, float]] | None]) -> None:
    table = boxed(rows)
    expected = [
        None if row is None else sum(label in ("ARM", "LEG") and s >= float32(0.6) for label, s in row) for row in rows
    ]
    assert boxes(COUNTED, table).to_pylist() == expected
    assert boxes(COUNTED, table.slice(1)).to_pylist() == expected[1:]
    assert boxes(COUNTED, pa.concat_tables([table.slice(2), table])).to_pylist() == expected[2:] + expected
    counted = [n is not None and n > 0 for n in expected]
    assert [bool(v) for v in verdicts(COUNTED, table).to_pylist()] == counted


def test_a_policy_of_images_counts_no_boxes_and_boxes_need_their_detections() -> None:
    with pytest.raises(ValueError, match="counts images"):
        boxes(policy(), scores(fake_a=[0.5], fake_b=[0.5]))
    with pytest.raises(UserError, match="needs the column 'fake_detections'"):
        boxes(COUNTED, boxed([[]]).drop_columns(["fake_detections"]))


@pytest.mark.parametrize("more", [{"columns": ("fake_arm",)}, {"others": (OTHER,)}])
def test_a_card_that_counts_what_are_no_boxes_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unit 'box'"):
        policy(**{"columns": ("fake_detected_arm",), **more}, unit="box")
