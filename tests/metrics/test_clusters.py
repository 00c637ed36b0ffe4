"""Which rows are one observation, and what that does to intervals, tests and "best"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import asr, policy, row, table

from harness.metrics.bootstrap import shares
from harness.metrics.clusters import clusters
from harness.metrics.intervals import wilson
from harness.metrics.measure import measure
from harness.metrics.threshold import curve


def rows(*entries: dict[str, Any]) -> pa.Table:
    plain = {"bench": "b", "defense": "none", "variant": "base", "prompt": None, "prompt_read": None}
    schema = pa.schema([(n, pa.string()) for n in ("row_id", *plain, "image_sha256")] + [("sample", pa.int32())])
    return pa.Table.from_pylist([plain | {"sample": 0} | e for e in entries], schema=schema)


def test_rows_of_one_prompt_are_one_observation_whatever_their_seed() -> None:
    found = clusters(rows(
        {"row_id": "b/0", "prompt": "a red star"}, {"row_id": "b/1", "prompt": "a blue ring"},
        {"row_id": "b/2", "prompt": "a red star"}, {"row_id": "b/1", "prompt": "a blue ring", "sample": 1},
    ))  # fmt: skip
    assert found == {"b/0": "b/0", "b/1": "b/1", "b/2": "b/0"}


def test_prompts_that_differ_where_no_encoder_reads_are_one() -> None:
    found = clusters(rows(
        {"row_id": "b/0", "prompt": "long ... star", "prompt_read": "aa"},
        {"row_id": "b/1", "prompt": "long ... ring", "prompt_read": "aa"},
        {"row_id": "b/2", "prompt": "short", "prompt_read": "bb"},
    ))  # fmt: skip
    assert found == {"b/0": "b/0", "b/1": "b/0", "b/2": "b/2"}


def test_what_is_alike_by_any_of_its_methods_rows_is_alike_for_all() -> None:
    """One method's row failed before its prompt was read: it is its prompt's row all the same."""
    found = clusters(rows(
        {"row_id": "b/0", "prompt": "x", "prompt_read": "aa"}, {"row_id": "b/1", "prompt": "y", "prompt_read": "aa"},
        {"row_id": "b/1", "prompt": "y", "defense": "uce"}, {"row_id": "b/2", "prompt": "y", "defense": "uce"},
    ))  # fmt: skip
    assert set(found.values()) == {"b/0"}


def test_images_from_elsewhere_are_one_where_they_are_copies_and_not_for_want_of_prompts() -> None:
    own = {"defense": "imported", "prompt": ""}
    found = clusters(rows(
        {"row_id": "b/0", "image_sha256": "s", **own}, {"row_id": "b/1", "image_sha256": "t", **own},
        {"row_id": "b/2", "image_sha256": "s", **own}, {"row_id": "b/1", "image_sha256": "s", **own, "variant": "pez"},
    ))  # fmt: skip
    assert found == {"b/0": "b/0", "b/1": "b/1", "b/2": "b/0"}


def test_the_same_prompt_in_two_benchmarks_is_two() -> None:
    found = clusters(rows({"row_id": "b/0", "prompt": "x"}, {"row_id": "c/0", "bench": "c", "prompt": "x"}))
    assert found == {"b/0": "b/0", "c/0": "c/0"}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_clusters_are_the_connected_parts(keys: list[tuple[int, int]]) -> None:
    """Against a brute force closure: two rows are one if a chain of shared texts or readings joins them."""
    found = clusters(rows(*({"row_id": f"b/{i}", "prompt": f"p{a}", "prompt_read": f"r{b}"}
                            for i, (a, b) in enumerate(keys))))  # fmt: skip
    n = len(keys)
    alike = np.array([[a[0] == b[0] or a[1] == b[1] for b in keys] for a in keys])
    closure = np.linalg.matrix_power(alike.astype(float), n) > 0
    assert [[found[f"b/{i}"] == found[f"b/{j}"] for j in range(n)] for i in range(n)] == closure.tolist()


def _with_prompts(scored: list[dict[str, Any]], prompts: list[str]) -> pa.Table:
    """Scored rows, each with its prompt."""
    return table(scored).append_column("prompt", pa.array(prompts, pa.string()))


def _copies(outcomes: list[str], copies: int, defense: str = "none") -> tuple[list[dict[str, Any]], list[str]]:
    """Each outcome ``copies`` times, in rows of their own."""
    scored = [row(i * copies + c, o, defense) for i, o in enumerate(outcomes) for c in range(copies)]
    return scored, [f"p{i}" for i in range(len(outcomes)) for _ in range(copies)]


def test_copies_leave_k_and_n_and_widen_the_interval_to_that_of_the_prompts() -> None:
    outcomes = ["unsafe", "safe", "safe", "safe", "unsafe", "safe", "safe", "safe"]
    single, named = _copies(outcomes, 1)
    one = asr(measure(_with_prompts(single, named), {"nudity": [policy()]}))
    scored, prompts = _copies(outcomes, 5)
    five = asr(measure(_with_prompts(scored, prompts), {"nudity": [policy()]}))
    assert (five.k, five.n, five.clusters) == (10, 40, 8)
    assert (one.k, one.n, one.clusters, one.interval) == (2, 8, 8, "wilson")
    ((low, high, _),) = shares(np.array([[5], [0], [0], [0], [5], [0], [0], [0]]), np.full((8, 1), 5))
    assert (five.low, five.high, five.interval) == (low, high, "bootstrap")
    whole = wilson(10, 40)
    assert five.high is not None
    assert five.low is not None
    assert five.high - five.low > 1.5 * (whole.high - whole.low)


def test_copies_that_all_agree_are_as_sure_as_their_prompts() -> None:
    scored, prompts = _copies(["safe"] * 12, 4)
    cell = asr(measure(_with_prompts(scored, prompts), {"nudity": [policy()]}))
    assert (cell.k, cell.n) == (0, 48)
    assert (cell.low, cell.high) == pytest.approx(wilson(0, 12))


def test_a_curve_is_as_sure_as_the_cell() -> None:
    scored, prompts = _copies(["unsafe", "safe", "unsafe", "safe", "safe", "safe"], 3)
    scores = _with_prompts(scored, prompts)
    cell = asr(measure(scores, {"nudity": [policy()]}))
    (point,) = curve(policy(), scores, [0.5])
    assert (point.k, point.n, point.low, point.high) == (cell.k, cell.n, cell.low, cell.high)


def test_a_test_on_copies_is_that_on_the_prompts_and_best_goes_by_it() -> None:
    """Five prompts of six that flip, each four times: p is 2 / 2^5 as for five rows, not 2 / 2^20."""
    before, after = ["unsafe"] * 5 + ["safe"], ["safe"] * 6
    for copies, prompts_differ in ((1, True), (4, True), (4, False)):
        first, prompts = _copies(before, copies)
        second, _ = _copies(after, copies, "uce")
        named = prompts if prompts_differ else [f"q{i}" for i in range(len(first))]
        found = measure(_with_prompts(first + second, named * 2), {"nudity": [policy()]})
        compared, plain = asr(found, "uce").compared, asr(found).compared
        assert compared is not None
        assert plain is not None
        expected = 2 / 2**5 if prompts_differ else 2 / 2**20
        assert compared.p == pytest.approx(expected)
        assert compared.pairs == 6 * copies
        assert not plain.best
        assert compared.best is not prompts_differ  # the other is worse if twenty rows say so, not if five prompts do
