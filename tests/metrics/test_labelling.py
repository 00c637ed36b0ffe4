"""Which images are labelled, and whether groups of labels are alike: against SciPy, brute force and simulation."""

from __future__ import annotations

from itertools import product
from math import comb, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from harness.metrics import labelling
from harness.metrics.labelling import allocation, bands, pool, pooling, same_share, spread
from harness.metrics.true_asr import Labels, corrected


@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 3000))
def test_an_allocation_uses_the_labels_and_asks_for_no_image_twice(n: int, flagged: int, m: int) -> None:
    flagged = min(flagged, n)
    found = allocation(flagged, n, m)
    assert sum(found) == min(n, m)
    assert 0 <= found.flagged <= flagged
    assert 0 <= found.unflagged <= n - flagged
    if m >= 6:
        assert found.flagged >= min(3, flagged)
        assert found.unflagged >= min(3, n - flagged)


def test_a_rare_flag_gets_few_labels_and_a_frequent_one_many() -> None:
    few, half, most = (allocation(flagged, 1000, 100).flagged for flagged in (30, 300, 700))
    assert few < half < most
    assert few >= 3


@pytest.mark.parametrize(("rate", "sensitivity", "specificity"), [(0.3, 0.85, 0.97), (0.1, 0.7, 0.99)])
def test_the_allocation_is_narrower_than_labels_at_random(rate: float, sensitivity: float, specificity: float) -> None:
    n, m = 1000, 100
    share = rate * sensitivity + (1 - rate) * (1 - specificity)
    among = rate * sensitivity / share, rate * (1 - sensitivity) / (1 - share)

    def width(of_flagged: int) -> float:
        counts = of_flagged, m - of_flagged
        unsafe = [round(a * c) for a, c in zip(among, counts, strict=True)]
        _, low, high = corrected(Labels(round(share * n), n, unsafe[0], counts[0], unsafe[1], counts[1]))
        return float(high) - low  # type: ignore[arg-type]

    assert width(allocation(round(share * n), n, m).flagged) <= width(round(share * m)) * 1.02


@pytest.mark.parametrize("given_", [(-1, 5, 3), (6, 5, 3), (0, 0, 3), (2, 5, 0)])
def test_impossible_allocations_are_refused(given_: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="an allocation needs"):
        allocation(*given_)


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(0, 200), st.integers(0, 5))
def test_spread_draws_each_row_once_at_most(scores: list[float], count: int, seed: int) -> None:
    count = min(count, len(scores))
    found = spread(scores, count, seed)
    assert len(set(found)) == len(found) == count
    assert found == spread(scores, count, seed)


def test_spread_reaches_every_band_of_scores_and_gives_each_row_the_same_chance() -> None:
    scores = np.linspace(0, 1, 50)
    times = np.zeros(50)
    for seed in range(3000):
        found = spread(scores, 10, seed)
        assert sorted(np.array(found) // 5) == list(range(10))  # one of each ten
        times[found] += 1
    assert np.abs(times / 3000 - 0.2).max() < 0.035  # 0.2 each; five standard errors


def test_spread_refuses_more_rows_than_there_are() -> None:
    with pytest.raises(ValueError, match="4 rows cannot be drawn from 3"):
        spread([0.1, 0.2, 0.3], 4, 0)


def test_bands_hold_as_many_rows_each() -> None:
    found = bands([0.9, 0.1, 0.5, 0.2, 0.8, 0.3], 3)
    assert list(found) == [2, 0, 1, 0, 2, 1]
    assert len(bands([], 3)) == 0


cells = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=2)


@given(cells)
def test_two_groups_are_fishers_exact_test(table: list[tuple[int, int]]) -> None:
    (a, b), (c, d) = table
    expected = fisher_exact([[a, b], [c, d]]).pvalue if (a + b) and (c + d) else 1.0
    assert same_share([a, c], [a + b, c + d]) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=4))
@settings(max_examples=25, deadline=None)
def test_more_groups_are_all_tables_with_these_margins(table: list[tuple[int, int]]) -> None:
    unsafe, sizes = [a for a, _ in table], [a + b for a, b in table]
    ways = {
        cell: prod(comb(m, k) for m, k in zip(sizes, cell, strict=True))
        for cell in product(*(range(m + 1) for m in sizes))
        if sum(cell) == sum(unsafe)
    }
    own = ways[tuple(unsafe)]
    expected = sum(w for w in ways.values() if w <= own) / sum(ways.values())
    assert same_share(unsafe, sizes) == pytest.approx(expected, abs=0.02)  # 20,000 tables drawn


def test_alike_groups_are_rarely_told_apart_and_unlike_ones_are() -> None:
    rng = np.random.default_rng(0)
    m = np.array([20, 20, 20])
    ps = [same_share(list(rng.binomial(m, 0.3)), list(m)) for _ in range(200)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.08
    assert same_share([18, 3, 17], [20, 20, 20]) < 0.001


def test_pooling_tests_both_kinds_and_pools_labels_not_verdicts() -> None:
    groups = [Labels(300, 1000, 28, 30, 2, 70), Labels(50, 1000, 4, 20, 1, 80)]
    found = pooling(groups)
    assert found.p_flagged == pytest.approx(2 * fisher_exact([[28, 2], [4, 16]]).pvalue)
    assert found.p == found.p_flagged < 0.001
    assert found.p_unflagged > 0.5
    assert pool(groups) == [Labels(300, 1000, 32, 50, 3, 150), Labels(50, 1000, 32, 50, 3, 150)]
    with pytest.raises(ValueError, match="one group"):
        pooling(groups[:1])


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="unsafe <= labelled"):
        same_share([3, 1], [2, 2])
    assert same_share([0, 0], [5, 7]) == 1.0
    assert same_share([2, 0], [4, 0]) == 1.0
    assert labelling.TABLES >= 10_000
