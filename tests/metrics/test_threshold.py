"""ASR against threshold: at every threshold what the verdicts say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.intervals import wilson
from harness.metrics.policies import verdicts
from harness.metrics.rates import count
from harness.metrics.threshold import GRID, curve, grid


def policy(
    op: str = ">",
    threshold: float = 0.45,
    others: tuple[Any, ...] = (),
    columns: tuple[str, ...] = ("fake_a", "fake_b"),
) -> PolicyCard:
    content: dict[str, Any] = {
        "name": "fake", "path": "fake.yaml", "root": ".", "summary": "", "version": 1, "cites": "", "concept": "nudity",
        "scorer": "fake", "rule": {"any_of": columns, "op": op, "threshold": threshold}, "others": others,
    }  # fmt: skip
    return PolicyCard(**content)


OTHER = ({"scorer": "else", "any_of": ["else_p"], "op": ">", "threshold": 0.5},)


def table(rows: list[dict[str, Any]], samples: int = 1) -> pa.Table:
    """Rows of ``fake_a``, ``fake_b``, ``else_p`` (float32) and reasons; ``samples`` rows for each prompt."""
    columns: dict[str, Any] = {
        name: pa.array([row.get(name) for row in rows], pa.float32()) for name in ("fake_a", "fake_b", "else_p")
    }
    for name in ("excluded", "error", "fake_error", "else_error"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.string())
    columns["row_id"] = pa.array([f"x/{i // samples:05d}" for i in range(len(rows))], pa.string())
    return pa.table(columns)


SCORE = st.one_of(
    st.none(), st.just(float("nan")), st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]), st.floats(0, 1, width=32)
)
REASON = st.sampled_from([None, None, None, None, "why"])
ROW = st.fixed_dictionaries(
    {"fake_a": SCORE, "fake_b": SCORE, "else_p": SCORE, "excluded": REASON, "error": REASON, "fake_error": REASON,
     "else_error": REASON}
)  # fmt: skip
THRESHOLD = st.one_of(st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]), st.floats(-0.5, 1.5))


@given(
    st.lists(ROW, min_size=1, max_size=12),
    st.sampled_from([">", ">="]),
    st.lists(THRESHOLD, min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_a_point_is_what_the_verdicts_give_at_its_threshold(
    rows: list[dict[str, Any]], op: str, thresholds: list[float], two: bool, samples: int
) -> None:
    scores, others = table(rows, samples), OTHER if two else ()
    for point in curve(policy(op, others=others), scores, thresholds):
        tally = count(verdicts(policy(op, point.threshold, others), scores))
        assert (point.k, point.n) == (tally.k, tally.n)
        assert (point.low is None) == (not tally.n)
        if tally.n:
            assert point.low is not None
            assert point.high is not None
            assert 0 <= point.low <= point.high <= 1
            if samples == 1:
                assert (point.low, point.high) == wilson(tally.k, tally.n)


def test_at_exactly_a_score_the_comparison_is_the_columns_own() -> None:
    scores = table([{"fake_a": 0.6, "fake_b": 0.0}])
    assert [p.k for p in curve(policy(">"), scores, [0.6])] == [0]
    assert [p.k for p in curve(policy(">="), scores, [0.6])] == [1]


def test_a_curve_falls_and_ends_at_nothing() -> None:
    generator = np.random.default_rng(0)
    rows = [{"fake_a": a, "fake_b": b} for a, b in generator.random((200, 2)).tolist()]
    points = curve(policy(), table(rows), GRID)
    assert [p.threshold for p in points] == list(GRID)
    assert all(a.k >= b.k for a, b in itertools.pairwise(points))
    assert (points[0].k, points[-1].k, points[0].n) == (200, 0, 200)


def test_several_samples_of_a_prompt_are_not_independent() -> None:
    """Five samples that always agree are worth one prompt: the interval is that of the prompts."""
    rows = [{"fake_a": 0.9 * (i % 2), "fake_b": 0.0} for i in range(40) for _ in range(5)]
    (point,) = curve(policy(), table(rows, samples=5), [0.45])
    low, high = wilson(20, 40)
    assert (point.k, point.n) == (100, 200)
    assert point.low == pytest.approx(low, abs=0.03)
    assert point.high == pytest.approx(high, abs=0.03)
    (safe,) = curve(policy(), table(rows, samples=5), [0.95])
    assert (safe.low, safe.high) == wilson(0, 40)


def test_the_interval_of_several_samples_is_the_cells() -> None:
    from harness.metrics.measure import measure

    generator = np.random.default_rng(1)
    rows: list[dict[str, Any]] = [{"fake_a": a, "fake_b": 0.0} for a in generator.random(60).tolist()]
    rows[:4] = [{"fake_error": "hang"}] * 4  # of the first prompt nothing is judged, of the second not all
    scores = table(rows, samples=3)
    identity = {
        "profile": "p",
        "backbone": "b",
        "defense": "none",
        "variant": "base",
        "bench": "x",
        "concept": "nudity",
    }
    for name, value in {**identity, "degenerate": None}.items():
        scores = scores.append_column(name, pa.array([value] * 60, pa.string()))
    scores = scores.append_column("sample", pa.array([i % 3 for i in range(60)], pa.int32()))
    cell = next(c for c in measure(scores, {"nudity": [policy()]}) if c.metric == "asr")
    (point,) = curve(policy(), scores, [0.45])
    assert (point.k, point.n) == (cell.k, cell.n)
    assert (point.low, point.high) == pytest.approx((cell.low, cell.high))


def test_a_grid_holds_the_papers_thresholds() -> None:
    assert grid(policy(), table([{"fake_a": 0.1, "fake_b": 1.0}]), [0.455]) == sorted([*GRID, 0.455])
    assert grid(policy(), table([{}]), []) == list(GRID)
    assert grid(policy(), table([{"fake_a": 3.0, "fake_b": 0.5}, {"fake_a": 7.0}]), [2.0]) == [2.0, 3.0, 7.0]


def test_a_flag_has_a_curve_and_mixed_types_have_none() -> None:
    scores = pa.table({"fake_a": pa.array([0, 1, 1, None], pa.int8()), "row_id": ["a", "b", "c", "d"]})
    assert [(p.k, p.n) for p in curve(policy(">=", columns=("fake_a",)), scores, [1, 2])] == [(2, 3), (0, 3)]
    mixed = scores.append_column("fake_b", pa.array([0.5] * 4, pa.float32()))
    with pytest.raises(UserError, match="no curve over columns of several types"):
        curve(policy(), mixed, [0.5])


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="needs the column 'else_q' of scorer 'else'"):
        curve(policy(others=({**OTHER[0], "any_of": ["else_q"]},)), table([{}]), [0.5])
