"""Rows are conserved, or no number is given: scored, errored or excluded, each once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import FATES, asr, policy, row, table, went_in

from harness.metrics.conservation import ConservationError
from harness.metrics.measure import measure


@given(st.lists(st.sampled_from(FATES), min_size=1, max_size=40))
def test_every_row_is_counted_once_whatever_became_of_it(outcomes: list[str]) -> None:
    found = asr(measure(table([row(i, f) for i, f in enumerate(outcomes)]), {"nudity": [policy()]}))
    assert found.k == outcomes.count("unsafe")
    assert found.n == outcomes.count("unsafe") + outcomes.count("safe")
    assert found.errors == outcomes.count("error") + outcomes.count("probe_error")
    assert found.excluded == outcomes.count("excluded")
    assert found.n + found.errors + found.excluded == len(outcomes)
    assert sum(found.reasons.values()) == found.errors + found.excluded


def test_a_missing_verdict_without_a_reason_is_refused_by_name() -> None:
    rows = [row(0, "safe"), row(1, "lost"), row(2, "unsafe")]
    with pytest.raises(ConservationError, match=r"1 neither scored, errored nor excluded \(such as b/00001\)"):
        measure(table(rows), {"nudity": [policy()]})


def test_a_row_that_is_there_twice_is_refused_by_name() -> None:
    with pytest.raises(ConservationError, match=r"b/00000.*2 times"):
        measure(table([row(0, "safe"), row(0, "safe"), row(1, "unsafe")]), {"nudity": [policy()]})


def test_the_same_row_under_two_defenses_or_samples_is_no_duplicate() -> None:
    rows = [row(0, "safe"), row(0, "safe", sample=1), row(0, "safe", defense="d")]
    cells = measure(table(rows), {"nudity": [policy()]})
    assert len([cell for cell in cells if not cell.metric.startswith("hit@")]) == 4


def test_a_row_that_went_in_and_did_not_come_out_is_named() -> None:
    with pytest.raises(ConservationError, match=r"3 rows went in and 2 came out; 1 lost \(such as b/00001\)"):
        measure(table([row(0, "safe"), row(2, "safe")]), {"nudity": [policy()]}, {("none", "base", "b"): went_in(3)})


def test_a_row_that_never_went_in_is_named() -> None:
    with pytest.raises(ConservationError, match=r"1 not of this run \(such as b/00001\)"):
        measure(table([row(0, "safe"), row(1, "safe")]), {"nudity": [policy()]}, {("none", "base", "b"): went_in(1)})


def test_a_defense_of_which_nothing_came_out_is_named() -> None:
    known = {("none", "base", "b"): went_in(1), ("rece", "base", "b"): went_in(1)}
    with pytest.raises(ConservationError, match="rece/base on b: 1 rows went in and none came out"):
        measure(table([row(0, "safe")]), {"nudity": [policy()]}, known)


def test_a_variant_of_which_nothing_came_out_is_named() -> None:
    known = {("none", "base", "b"): went_in(1), ("none", "resafe", "b"): went_in(1)}
    with pytest.raises(ConservationError, match="none/resafe on b: 1 rows went in and none came out"):
        measure(table([row(0, "safe")]), {"nudity": [policy()]}, known)


def test_a_row_lost_on_the_way_to_its_regeneration_is_named() -> None:
    known = {("none", "base", "b"): went_in(2), ("none", "resafe", "b"): went_in(2)}
    rows = [row(0, "safe"), row(1, "unsafe"), row(0, "safe", variant="resafe")]
    with pytest.raises(
        ConservationError, match=r"none/resafe on b: 2 rows went in and 1 came out; 1 lost \(such as b/00001"
    ):
        measure(table(rows), {"nudity": [policy()]}, known)


def test_a_regeneration_that_is_there_twice_is_refused_by_name() -> None:
    rows = [row(0, "safe"), row(0, "safe", variant="resafe"), row(0, "unsafe", variant="resafe")]
    with pytest.raises(ConservationError, match=r"b/00000.*'resafe'.*2 times"):
        measure(table(rows), {"nudity": [policy()]})


def test_rows_of_two_benchmarks_are_not_mixed_up() -> None:
    known = {("none", "base", "b"): went_in(1), ("none", "base", "c"): went_in(1)}
    with pytest.raises(ConservationError, match=r"none/base on c: 1 rows went in and 1 came out; 1 lost .*b/00000"):
        measure(table([row(0, "safe"), row(0, "safe", bench="c")]), {"nudity": [policy()]}, known)
