"""Intervals against statsmodels, and the properties that any interval has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from harness.metrics.intervals import newcombe, quantile, wilson

LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@st.composite
def counts(draw: st.DrawFn, most: int = 5000) -> tuple[int, int]:
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n


@given(counts(), LEVELS)
def test_wilson_is_statsmodels(count: tuple[int, int], level: float) -> None:
    k, n = count
    expected = proportion_confint(k, n, alpha=1 - level, method="wilson")
    assert wilson(k, n, level) == pytest.approx(expected, abs=1e-12)


@given(counts(), LEVELS)
def test_wilson_holds_the_rate_inside_the_unit_interval(count: tuple[int, int], level: float) -> None:
    k, n = count
    low, high = wilson(k, n, level)
    assert 0 <= low <= k / n <= high <= 1
    assert high - low > 0
    assert (low == 0) == (k == 0)
    assert (high == 1) == (k == n)


@given(counts(), LEVELS)
def test_wilson_mirrors(count: tuple[int, int], level: float) -> None:
    k, n = count
    low, high = wilson(k, n, level)
    assert wilson(n - k, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_of_a_worked_example() -> None:
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)  # Newcombe 1998, Stat. Med. 17:857, table I


@given(counts(), counts(), LEVELS)
def test_newcombe_is_statsmodels(first: tuple[int, int], second: tuple[int, int], level: float) -> None:
    expected = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff", alpha=1 - level)
    assert newcombe(*first, *second, level) == pytest.approx(expected, abs=1e-9)


def test_newcombe_of_a_worked_example() -> None:
    # Newcombe 1998, Stat. Med. 17:873, table II, method 10.
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


@given(counts(), counts())
def test_newcombe_turns_round_with_the_groups(first: tuple[int, int], second: tuple[int, int]) -> None:
    low, high = newcombe(*first, *second)
    assert low <= first[0] / first[1] - second[0] / second[1] <= high
    assert newcombe(*second, *first) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5), (1, -2)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}, n={n}"):
        wilson(k, n)
    with pytest.raises(ValueError, match=f"k={k}, n={n}"):
        newcombe(1, 2, k, n)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_an_impossible_level_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(level)
