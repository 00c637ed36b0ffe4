"""The best of several cells: counts, intervals and ties by their definitions, optimism by every resample there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from harness.metrics.intervals import wilson
from harness.metrics.selection import select


def _rows(n: int) -> list[str]:
    return [f"row{i}" for i in range(n)]


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 30))))
@settings(max_examples=25)
def test_the_best_has_the_lowest_count_and_its_own_interval(unsafe: np.ndarray) -> None:
    found = select(unsafe, _rows(unsafe.shape[1]))
    totals = unsafe.sum(axis=1).tolist()
    assert (found.k, found.n, found.best) == (min(totals), unsafe.shape[1], totals.index(min(totals)))
    assert found.interval == pytest.approx(wilson(found.k, found.n))
    assert found.joint == pytest.approx(wilson(found.k, found.n, 1 - 0.05 / len(totals)))
    assert found.joint.low <= found.interval.low <= found.interval.high <= found.joint.high


@given(hnp.arrays(np.bool_, st.tuples(st.integers(2, 4), st.just(4))))
@settings(max_examples=12)
def test_optimism_is_the_mean_over_every_resample(unsafe: np.ndarray) -> None:
    """4 rows have 256 resamples, all of which are tried here; the code draws 2,000 of them."""
    rates = unsafe.mean(axis=1)
    gaps, chosen = [], []
    best = int(unsafe.sum(axis=1).argmin())
    for drawn in itertools.product(range(4), repeat=4):
        own = unsafe[:, drawn].mean(axis=1)
        lowest = np.isclose(own, own.min())
        gaps.append(rates[lowest].mean() - own.min())
        chosen.append(lowest[best] / lowest.sum())
    found = select(unsafe, _rows(4))
    spread = np.std(gaps) / np.sqrt(2000)
    assert found.optimism == pytest.approx(max(np.mean(gaps), 0), abs=5 * spread + 1e-9)
    assert found.chosen == pytest.approx(np.mean(chosen), abs=0.06)


def test_cells_are_tied_unless_an_exact_paired_test_tells_them_apart() -> None:
    rows = 40
    unsafe = np.zeros((4, rows), np.bool_)
    for cell, count in enumerate((2, 4, 12, 30)):
        unsafe[cell, :count] = True  # nested: only the other cell's further rows are discordant
    found = select(unsafe, _rows(rows))
    ps = sorted(((stats.binomtest(0, c - 2, 0.5).pvalue, i) for i, c in ((1, 4), (2, 12), (3, 30))))
    running, tied = 0.0, []
    for rank, (p, i) in enumerate(ps):
        running = max(running, (len(ps) - rank) * p)
        tied += [i] if running > 0.05 else []
    assert found.best == 0
    assert set(found.tied) == set(tied) == {1}


def test_rows_of_one_prompt_are_drawn_together() -> None:
    """Copies say nothing more: the optimism of copied rows is that of one copy each, not of twice as many rows."""
    generator = np.random.default_rng(1)
    unsafe = generator.random((5, 12)) < 0.4
    once = select(unsafe, _rows(12))
    copied = select(np.repeat(unsafe, 3, axis=1), [name for name in _rows(12) for _ in range(3)])
    assert copied.optimism == pytest.approx(once.optimism, abs=1e-9)
    assert copied.n == 3 * once.n


def test_selection_is_optimistic_and_the_correction_takes_that_away() -> None:
    """Ten cells of the same true rate: the lowest of them is too low, and less so with the optimism added."""
    generator = np.random.default_rng(7)
    raw, corrected = [], []
    for _ in range(40):
        found = select(generator.random((10, 60)) < 0.3, _rows(60))
        raw.append(found.k / found.n)
        corrected.append(found.k / found.n + found.optimism)
    assert np.mean(raw) < 0.25
    assert abs(np.mean(corrected) - 0.3) < abs(np.mean(raw) - 0.3) / 2


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_choose_from_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="nothing to choose from"):
        select(np.zeros(shape, np.bool_), _rows(shape[1]))
