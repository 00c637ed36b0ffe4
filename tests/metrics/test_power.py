"""Power of the paired comparison against enumeration of all tables, and the survey's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from harness.metrics.paired import mcnemar_exact
from harness.metrics.power import chance_to_find, fewest_flips, planned, smallest_difference


def test_flips_at_95_rows_are_those_of_the_survey() -> None:
    """Two defenses need 6 one-way flips of 95 (6.3 points), and 10.5 points after Holm over 14."""
    alone, of_many = planned(95, 1), planned(95, 14)
    assert (alone.flips, alone.smallest_seen) == (6, pytest.approx(0.063, abs=5e-4))
    assert (of_many.flips, of_many.smallest_seen) == (10, pytest.approx(0.105, abs=5e-4))


@given(st.floats(1e-9, 0.999))
def test_fewest_flips_are_the_fewest(level: float) -> None:
    b = fewest_flips(level)
    assert mcnemar_exact(b, 0) <= level
    assert b == 1 or mcnemar_exact(b - 1, 0) > level


@given(st.integers(1, 25), st.floats(0, 0.6), st.floats(0, 0.4), st.sampled_from([0.05, 0.01, 0.05 / 14]))
@settings(max_examples=40, deadline=None)
def test_power_is_the_sum_over_all_tables(n: int, forth: float, back: float, level: float) -> None:
    expected = 0.0
    for b in range(n + 1):
        for c in range(n - b + 1):
            if b > c and mcnemar_exact(b, c) <= level:
                expected += multinomial.pmf([b, c, n - b - c], n, [forth, back, 1 - forth - back])
    assert chance_to_find(n, forth, back, level) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "back", "level"), [(95, 0.0, 0.05), (95, 0.05, 0.05 / 14), (142, 0.02, 0.01)])
def test_the_smallest_difference_has_the_power_asked_and_less_has_less(n: int, back: float, level: float) -> None:
    found = smallest_difference(n, back, level)
    assert found is not None
    assert chance_to_find(n, back + found, back, level) >= 0.8
    assert chance_to_find(n, back + found - 0.002, back, level) < 0.8


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    n, back = 95, 0.05
    forth = back + (smallest_difference(n, back) or 0)
    draws = np.random.default_rng(0).multinomial(n, [forth, back, 1 - forth - back], 4000)
    found = np.mean([b > c and mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.8, abs=0.025)


def test_too_few_rows_can_show_nothing() -> None:
    found = planned(5, 1)
    assert found.flips == 6
    assert found.smallest_seen is None
    assert found.smallest_true is None
    assert found.smallest_noisy is None


def test_more_rows_show_more_and_more_tests_less() -> None:
    by_rows = [planned(n, 14).smallest_noisy or 1 for n in (95, 142, 1000, 4703)]
    assert by_rows == sorted(by_rows, reverse=True)
    by_tests = [planned(95, m).smallest_true or 1 for m in (1, 2, 14, 30)]
    assert by_tests == sorted(by_tests)


@pytest.mark.parametrize("wrong", [{"n": 0, "tests": 1}, {"n": 5, "tests": 0}, {"n": 5, "tests": 1, "back": 1.0}])
def test_impossible_plans_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="planning needs"):
        planned(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="add up to 1"):
        chance_to_find(5, 0.7, 0.4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fewest_flips(0)
