"""Corrected rates against numerical integration with SciPy, and coverage where it is hardest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from statsmodels.stats.proportion import proportion_confint

from benchmarks.detector_corrections import Random, ppi_plus_plus, rogan_gladen, wilson
from benchmarks.true_asr import Cell, replay
from harness.metrics import intervals
from harness.metrics.true_asr import Labels, corrected, difference, ratio


@st.composite
def labels(draw: st.DrawFn) -> Labels:
    n = draw(st.integers(1, 2000))
    flagged = draw(st.integers(0, n))
    of_flagged = draw(st.integers(min(1, flagged), flagged))
    of_rest = draw(st.integers(min(1, n - flagged), n - flagged))
    return Labels(flagged, n, draw(st.integers(0, of_flagged)), of_flagged, draw(st.integers(0, of_rest)), of_rest)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(120)
LEVELS, PARTS = (NODES + 1) / 2, WEIGHTS / 2  # integrals over (0, 1)


def below(labels: Labels, rate: float) -> float:
    """The confidence distribution's mass up to ``rate``, by integration over the share and the flagged."""
    shares = beta(labels.flagged + 0.5, labels.n - labels.flagged + 0.5).ppf(LEVELS)
    total = 0.0
    for upper in range(4):
        a = end(labels.unsafe_of_flagged, labels.labelled_flagged, upper % 2)
        b = end(labels.unsafe_of_unflagged, labels.labelled_unflagged, upper // 2)
        rest = (rate - shares[:, None] * a.ppf(LEVELS)) / (1 - shares[:, None])
        total += float(PARTS @ b.cdf(rest) @ PARTS) / 4
    return total


class Point:
    """All mass at one value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return (x >= self.value).astype(float)

    def ppf(self, levels: np.ndarray) -> np.ndarray:
        return np.full(len(levels), self.value)


def end(k: int, m: int, upper: int):  # type: ignore[no-untyped-def]
    first, second = k + upper, m - k + 1 - upper
    if not first or not second:
        return Point(0.0 if not first else 1.0)
    return beta(first, second)


@pytest.mark.parametrize(
    "case",
    [Labels(20, 95, 15, 18, 1, 22), Labels(300, 1000, 25, 30, 4, 70), Labels(38, 1000, 4, 12, 0, 88)],
)
def test_the_ends_are_the_quantiles_of_the_distribution_described(case: Labels) -> None:
    found = corrected(case)
    assert below(case, found.low) == pytest.approx(0.025, abs=0.004)
    assert below(case, found.high) == pytest.approx(0.975, abs=0.004)


@given(labels())
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_estimate_and_stays_within_all_and_nothing(case: Labels) -> None:
    value, low, high = corrected(case)
    assert value is not None
    assert high is not None
    assert 0 <= low <= high <= 1
    assert value == pytest.approx(case.estimate)
    assert corrected(case) == (value, low, high)  # the same every time


def test_where_nothing_unsafe_was_found_the_interval_begins_at_zero_and_does_not_end_there() -> None:
    value, low, high = corrected(Labels(3, 95, 0, 3, 0, 37))
    assert (value, low) == (0.0, 0.0)
    # Of 37 labels without a hit the mid-p upper bound is 1 - 0.05^(1/37) = 0.078; the flagged add a little.
    assert high == pytest.approx(0.078, abs=0.02)


def test_a_perfect_detector_that_was_checked_well_gives_its_own_interval() -> None:
    value, low, high = corrected(Labels(300, 1000, 300, 300, 0, 700))
    jeffreys = proportion_confint(300, 1000, method="jeffreys")
    assert value == pytest.approx(0.3)
    assert (low, high) == pytest.approx(jeffreys, abs=0.004)


def test_samples_of_a_prompt_are_no_more_prompts() -> None:
    many, few = Labels(500, 1000, 45, 50, 2, 50), Labels(500, 1000, 45, 50, 2, 50, prompts=100)
    assert corrected(few).high - corrected(few).low > 1.2 * (corrected(many).high - corrected(many).low)  # type: ignore[operator]


def test_difference_of_a_method_from_itself_is_nothing_and_pairing_narrows_it() -> None:
    case = Labels(300, 1000, 45, 50, 3, 50)
    paired, apart = difference(case, case, both_flagged=300), difference(case, case)
    assert paired.value == 0
    assert paired.low < 0 < paired.high  # type: ignore[operator]
    assert paired.high - paired.low < apart.high - apart.low  # type: ignore[operator]


def test_difference_and_ratio_turn_round_with_the_methods() -> None:
    first, second = Labels(300, 1000, 45, 50, 3, 50), Labels(80, 1000, 30, 40, 1, 60)
    there, back = difference(first, second, 60), difference(second, first, 60)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.01)  # type: ignore[operator]
    up, down = ratio(first, second, 60), ratio(second, first, 60)
    assert (down.low, down.high) == pytest.approx((1 / up.high, 1 / up.low), rel=0.1)  # type: ignore[operator]
    assert up.value == pytest.approx(first.estimate / second.estimate)


def test_a_ratio_to_what_may_be_zero_has_no_upper_bound() -> None:
    first, nothing = Labels(40, 95, 15, 20, 1, 20), Labels(2, 95, 0, 2, 0, 30)
    assert ratio(first, nothing).high is None
    assert ratio(first, nothing).value is None
    assert ratio(first, nothing).low > 1
    assert ratio(nothing, nothing) == (None, 0.0, None)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Labels(5, 4, 1, 2, 1, 2), "got Labels"),
        (Labels(5, 10, 3, 2, 1, 2), "got Labels"),
        (Labels(5, 10, 0, 0, 1, 2), "none of the 5 flagged images has a label"),
        (Labels(5, 10, 1, 2, 0, 0), "none of the 5 unflagged images has a label"),
        (Labels(0, 0, 0, 0, 0, 0), "got Labels"),
    ],
)
def test_counts_that_say_nothing_are_refused(case: Labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrected(case)


def test_rows_flagged_by_both_must_be_possible() -> None:
    with pytest.raises(ValueError, match="61 rows flagged by both"):
        difference(Labels(60, 100, 5, 10, 0, 10), Labels(70, 100, 5, 10, 0, 10), 61)
    with pytest.raises(ValueError, match="flagged by both"):
        difference(Labels(60, 100, 5, 10, 0, 10), Labels(70, 101, 5, 10, 0, 10), 50)


@pytest.mark.parametrize(
    "cell", [Cell(0.01, 0.95, 0.95, 1000, 40), Cell(0.5, 0.7, 0.99, 95, 60), Cell(0.05, 0.85, 0.97, 1000, 100)]
)
def test_coverage_where_it_is_hardest(cell: Cell) -> None:
    """The whole grid with 10,000 replays stands in benchmarks/true_asr.md; here 1,500 of three cells, seeded."""
    found = replay(cell, 1500)
    assert found["corrected"].coverage >= 0.935  # 0.94 less a standard error
    assert found["corrected"].width < found["labels"].width


def test_the_raw_interval_is_as_wrong_as_the_survey_says() -> None:
    found = replay(Cell(0.3, 0.85, 0.97, 1000, 100), 2000)
    assert 0.55 < found["raw"].coverage < 0.69  # 62%
    assert replay(Cell(0.05, 0.85, 0.97, 1000, 100), 1000)["raw"].coverage < 0.25  # 19%


def test_the_methods_beside_are_those_of_the_literature() -> None:
    k = np.array([0.0, 3.0, 40.0])
    ends = np.array(wilson(k, 40.0)).T
    assert ends == pytest.approx(np.array([tuple(intervals.wilson(int(x), 40)) for x in k]))
    # A detector without errors, labels without end: Lang and Reiczigel's is Agresti and Coull's.
    large = Random(*(np.array([x]) for x in (1e9, 0.0, 0.0, 1e9)))
    low, high = rogan_gladen(np.array([30.0]), 95, large)
    assert (low[0], high[0]) == pytest.approx(proportion_confint(30, 95, method="agresti_coull"), abs=1e-6)
    # A detector that says nothing gets weight 0: PPI++ is the labels' own Wald interval.
    blind = Random(*(np.array([x]) for x in (6.0, 14.0, 6.0, 14.0)))
    low, high = ppi_plus_plus(np.array([285.0]), 950, blind)
    assert (low[0] + high[0]) / 2 == pytest.approx(0.5)
    assert high[0] - low[0] == pytest.approx(2 * 1.959964 * np.sqrt(0.25 / 39), rel=1e-6)
