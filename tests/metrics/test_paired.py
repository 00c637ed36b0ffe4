"""Paired tests against SciPy, statsmodels and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.metrics.paired import holm, mcnemar_exact, paired_difference, swapped_clusters

counts = st.integers(0, 400)


@given(counts, counts)
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    assume(b + c > 0)
    assert mcnemar_exact(b, c) == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)


@given(counts, counts)
def test_mcnemar_is_statsmodels(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(float(mcnemar([[3, b], [c, 4]], exact=True).pvalue), rel=1e-9)


@given(counts, counts)
def test_mcnemar_does_not_ask_which_is_first(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    assert 0 < mcnemar_exact(b, c) <= 1


def test_mcnemar_of_known_tables() -> None:
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(5, 5) == 1
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(1, 9) == 22 / 1024
    assert mcnemar_exact(0, 1000) == 2.0**-999  # beyond a float64's epsilon, and still right
    assert mcnemar_exact(0, 4703) == 0 or mcnemar_exact(0, 4703) < 1e-300


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(-1, 3)


@given(st.lists(st.integers(-5, 5), max_size=10))
def test_prompts_are_swapped_in_every_way(differences: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    assert swapped_clusters(differences) == pytest.approx(expected)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_with_one_pair_each_swapping_prompts_is_mcnemar(b: int, c: int, alike: int) -> None:
    assert swapped_clusters([1] * b + [0] * alike + [-1] * c) == mcnemar_exact(b, c)
    # Ten alike pairs of each prompt are one answer: p is that of the prompts.
    assert swapped_clusters([10] * b + [0] * alike + [-10] * c) == pytest.approx(mcnemar_exact(b, c))


def test_swapping_as_many_prompts_as_any_benchmark_has_is_fast_enough_and_right() -> None:
    """4703 prompts of ten samples, all in favour but ten: such a p is beyond float64, and no error."""
    assert swapped_clusters([7] * 4693 + [-7] * 10) < 1e-300
    assert swapped_clusters([3] * 60 + [-3] * 40 + [1, -1]) == pytest.approx(
        sum(binom.pmf(k, 100, 0.5) * (abs(3 * (2 * k - 100) + e) >= 60) * w
            for k in range(101) for e, w in ((-2, 0.25), (0, 0.5), (2, 0.25)))
    )  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=15)  # statsmodels collects garbage at every call
def test_holm_is_statsmodels(ps: list[float]) -> None:
    assert holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]), abs=1e-12)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_and_keeps_the_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(p <= a <= 1 for p, a in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_of_nothing_is_nothing_and_of_no_probability_an_error() -> None:
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"1\.5"):
        holm([0.1, 1.5])
    with pytest.raises(ValueError, match="nan"):
        holm([float("nan")])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 500))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


def likelihood(b: int, c: int, n: int, delta: float, second: float) -> float:
    """Log likelihood of the trinomial with P(second alone) = second, P(first alone) = second + delta."""
    shares = ((b, second + delta), (c, second), (n - b - c, 1 - 2 * second - delta))
    return sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)


def statistic(b: int, c: int, n: int, delta: float) -> float:
    """Tango's z with the restricted estimate found by search, not by formula."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    found = minimize_scalar(
        lambda q: -likelihood(b, c, n, delta, q), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    second = min((low, float(found.x), high), key=lambda q: -likelihood(b, c, n, delta, q))
    return (b - c - n * delta) / math.sqrt(n * (2 * second + delta * (1 - delta)))


@given(pairs())
@settings(max_examples=60, deadline=None)
@example((0, 0, 1))
@example((0, 0, 95))
@example((95, 0, 95))
@example((12, 0, 400))
def test_paired_difference_ends_where_the_score_test_rejects(table: tuple[int, int, int]) -> None:
    b, c, n = table
    low, high = paired_difference(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    if low > -1 + 1e-6:
        assert statistic(b, c, n, low) == pytest.approx(1.959964, abs=2e-3)
    if high < 1 - 1e-6:
        assert statistic(b, c, n, high) == pytest.approx(-1.959964, abs=2e-3)


@given(pairs())
def test_paired_difference_turns_round_with_the_methods(table: tuple[int, int, int]) -> None:
    b, c, n = table
    low, high = paired_difference(b, c, n)
    assert paired_difference(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_paired_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    n, first, second = 40, 0.15, 0.05  # P(first alone), P(second alone)
    covered = 0.0
    for b in range(n + 1):
        for c in range(n - b + 1):
            chance = binom.pmf(b, n, first) * binom.pmf(c, n - b, second / (1 - first))
            low, high = paired_difference(b, c, n)
            covered += chance * (low <= first - second <= high)
    assert 0.94 <= covered <= 0.97


def test_paired_difference_narrows_with_agreement() -> None:
    widths = [np.ptp(paired_difference(b, b, 400)) for b in (0, 5, 50, 200)]
    assert widths == sorted(widths)
    assert widths[0] < 0.02


@pytest.mark.parametrize(("b", "c", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_tables_are_refused(b: int, c: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"b={b}, c={c}, n={n}"):
        paired_difference(b, c, n)
