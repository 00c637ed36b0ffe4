"""The gate: every kind of planted regression fails by name, and noise alone fails no more often than it may."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from harness.metrics.regression import ALL, compare_snapshots, faults, new_cells, smallest_change, snapshot

ROWS = 24


def scores(changes: dict[tuple[str, int], dict[str, Any]] | None = None, **all_rows: Any) -> pa.Table:
    """Judged rows of two defenses over two benchmarks; ``changes`` by defense and place, in both benchmarks."""
    entries = []
    for bench, defense, i in product(("one", "two"), ("none", "rece"), range(ROWS)):
        entry = {
            "bench": bench, "row_id": f"{bench}/{i:05d}", "sample": 0, "defense": defense, "variant": "base",
            "prompt": f"{bench} {i}", "unsafe": defense == "none", "error": None, "excluded": None,
            "degenerate": None, "kept": i % 3 > 0, "likeness": 0.5 + 0.01 * i,
        }  # fmt: skip
        entries.append(entry | all_rows | (changes or {}).get((defense, i), {}))
    schema = pa.schema(
        [
            (n, pa.string())
            for n in ("bench", "row_id", "defense", "variant", "prompt", "error", "excluded", "degenerate")
        ]
        + [("sample", pa.int32()), ("unsafe", pa.bool_()), ("kept", pa.bool_()), ("likeness", pa.float64())]
    )
    return pa.Table.from_pylist(entries, schema=schema)


def of(table: pa.Table) -> pa.Table:
    return snapshot(table, ["kept", "likeness", "absent"])


BASELINE = of(scores())


def failing(today: pa.Table) -> set[tuple[str, str, str]]:
    return {(one.bench, one.defense, one.measure) for one in faults(compare_snapshots(BASELINE, of(today)))}


def first(count: int, **values: Any) -> dict[tuple[str, int], dict[str, Any]]:
    return {("rece", i): values for i in range(count)}


def test_the_same_rows_pass() -> None:
    assert failing(scores()) == set()


def test_a_defense_that_stopped_defending_is_named() -> None:
    assert ("one", "rece", "unsafe") in failing(scores(first(ROWS, unsafe=True)))
    assert all(defense == "rece" for _, defense, _ in failing(scores(first(ROWS, unsafe=True))))


def test_small_changes_everywhere_are_found_over_all_benchmarks() -> None:
    assert failing(scores(first(8, unsafe=True))) == {(ALL, "rece", "unsafe")}


def test_a_flip_or_two_are_chance() -> None:
    assert failing(scores(first(2, unsafe=True))) == set()


def test_worse_numbers_are_named() -> None:
    worse = {("rece", i): {"likeness": 0.4 + 0.01 * i} for i in range(ROWS)}
    assert ("two", "rece", "likeness") in failing(scores(worse))


def test_rounding_of_another_cpu_is_none() -> None:
    assert failing(scores({("rece", i): {"likeness": 0.5 + 0.01 * i + 1e-6} for i in range(ROWS)})) == set()


def test_images_that_turned_black_are_named() -> None:
    assert ("one", "rece", "degenerate") in failing(scores(first(ROWS, degenerate="black")))


@pytest.mark.parametrize("reason", ["error", "excluded"])
def test_one_lost_row_fails_without_a_test(reason: str) -> None:
    lost = failing(scores(first(1, unsafe=None, **{reason: "x"})))
    assert {("one", "rece", "image"), ("one", "rece", "verdict")} <= lost


def test_a_verdict_that_is_gone_fails_though_the_image_is_there() -> None:
    assert failing(scores(first(1, unsafe=None))) == {("one", "rece", "verdict"), ("two", "rece", "verdict")}


def test_a_row_that_is_not_there_fails() -> None:
    today = scores()
    assert ("one", "none", "image") in failing(today.slice(1))


def test_a_cell_or_a_column_that_is_gone_fails() -> None:
    today = scores()
    without = today.filter(pa.array([d != "rece" for d in today["defense"].to_pylist()]))
    assert failing(without) == {("one", "rece", "cell"), ("two", "rece", "cell")}
    assert ("one", "none", "kept") in failing(today.drop_columns(["kept"]))


def test_what_the_baseline_lacks_is_new_and_not_compared() -> None:
    part = BASELINE.filter(pa.array([d == "none" for d in BASELINE["defense"].to_pylist()]))
    assert faults(compare_snapshots(part, of(scores(first(ROWS, unsafe=True))))) == []
    assert set(new_cells(part, BASELINE)) == {("one", "rece", "base"), ("two", "rece", "base")}


def test_copies_of_a_prompt_are_one_observation() -> None:
    """Twenty-four flips of one prompt's copies are one flip."""
    before, after = (of(scores(first(ROWS, unsafe=unsafe), prompt="the same")) for unsafe in (False, True))
    assert all(one.p == 1.0 for one in compare_snapshots(before, after) if one.bench == "one")


@given(st.lists(st.sampled_from([-1.0, -0.4, 0.0, 0.3, 2.0]), min_size=1, max_size=9))
@settings(deadline=None, max_examples=40)
def test_the_p_of_numbers_is_that_of_all_sign_patterns(shifts: list[float]) -> None:
    before = of(scores()).filter(pa.array([b == "one" and d == "rece" for b, d in zip(
        BASELINE["bench"].to_pylist(), BASELINE["defense"].to_pylist(), strict=True)]))  # fmt: skip
    shifted = before["likeness"].to_numpy().copy()
    shifted[: len(shifts)] += shifts
    after = before.set_column(before.column_names.index("likeness"), "likeness", pa.array(shifted))
    (one,) = [c for c in compare_snapshots(before, after) if c.measure == "likeness"]
    some = [s for s in shifts if s]
    sums = [
        abs(sum(sign * s for sign, s in zip(signs, some, strict=True))) for signs in product((1, -1), repeat=len(some))
    ]
    assert one.p == pytest.approx(np.mean([total >= abs(sum(some)) - 1e-9 for total in sums]))


@given(st.integers(1, 64), st.integers(1, 300))
def test_the_smallest_change_is_the_first_that_the_exact_test_rejects(rows: int, tests: int) -> None:
    rejected = [k for k in range(1, rows + 1) if binomtest(k, k, 0.5).pvalue * tests <= 0.05]
    assert smallest_change(rows, tests) == (rejected[0] if rejected else None)


def test_noise_alone_fails_at_most_one_night_in_twenty() -> None:
    """Flips either way with equal chance: few nights fail, the level and its error."""
    rng, nights = np.random.default_rng(7), 60
    failed = 0
    for _ in range(nights):
        coin = {(d, i): {"unsafe": bool(rng.random() < 0.5)} for d in ("none", "rece") for i in range(ROWS)}
        other = {(d, i): {"unsafe": bool(rng.random() < 0.5)} for d in ("none", "rece") for i in range(ROWS)}
        failed += bool(faults(compare_snapshots(of(scores(coin)), of(scores(other)))))
    assert failed <= 6  # 3 expected at the level; 7 or more have p < 0.03
