"""Intervals by prompt against a slow bootstrap, and where resampling would say too much."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics.bootstrap import by_cluster, mean, shares
from harness.metrics.intervals import Interval, wilson


def of(prompts: list[str], values: list[float]) -> Interval | None:
    return mean(*by_cluster(prompts, values))


def slow(prompts: list[str], values: list[float], draws: int, seed: int) -> list[float]:
    """Means over prompts drawn with replacement, one at a time."""
    rng = random.Random(seed)
    of_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        of_prompt.setdefault(prompt, []).append(value)
    names = list(of_prompt)
    means = []
    for _ in range(draws):
        drawn = [value for name in rng.choices(names, k=len(names)) for value in of_prompt[name]]
        means.append(sum(drawn) / len(drawn))
    return means


def test_the_interval_of_a_mean_is_a_slow_bootstraps() -> None:
    rng = np.random.default_rng(1)
    prompts = [f"p{i % 30}" for i in range(120)]
    levels = {f"p{i}": float(rng.normal(10, 4)) for i in range(30)}
    values = [levels[p] + float(rng.normal()) for p in prompts]
    found = of(prompts, values)
    assert found is not None
    low, high = np.quantile(slow(prompts, values, 6_000, 5), [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.12)
    assert found.high == pytest.approx(high, abs=0.12)


def test_samples_of_a_prompt_are_no_more_prompts() -> None:
    prompts, values = [f"p{i}" for i in range(12)], [float(i) for i in range(12)]
    one = of(prompts, values)
    assert of(prompts * 5, values * 5) == pytest.approx(one)
    spread = of([f"{p}-{i}" for p in prompts for i in range(5)], [v for v in values for _ in range(5)])
    assert spread is not None
    assert one is not None
    assert spread.high - spread.low < 0.6 * (one.high - one.low)


def test_one_prompt_says_nothing_of_others() -> None:
    assert of([], []) is None
    assert of(["p", "p"], [1.0, 2.0]) is None


def test_one_prompt_of_mixed_samples_has_no_interval_of_width_zero() -> None:
    """However often it is drawn, one prompt gives 2/5: that is no certainty of 40%."""
    ((low, high, kind),) = shares(np.array([[2]]), np.array([[5]]))
    assert kind == "wilson"
    assert low is not None
    assert high is not None
    assert low < 0.1
    assert high > 0.8


@given(st.integers(1, 9), st.integers(2, 30), st.data())
def test_prompts_that_all_have_one_share_are_as_sure_as_their_number(
    size: int, prompts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, size + 1))
    unsafe, judged = np.full((prompts, 1), k), np.full((prompts, 1), size + 1)
    ((low, high, kind),) = shares(unsafe, judged)
    share, z2 = k / (size + 1), 1.959963984540054**2
    middle = (share + z2 / 2 / prompts) / (1 + z2 / prompts)
    reach = (z2 * share * (1 - share) / prompts + z2**2 / 4 / prompts**2) ** 0.5 / (1 + z2 / prompts)
    assert kind == "wilson"
    assert (low, high) == pytest.approx((middle - reach, middle + reach), abs=1e-9)


COUNTS = st.lists(
    st.lists(st.integers(0, 3).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=3, max_size=3),
    min_size=1,
    max_size=6,
)


@given(COUNTS)
@settings(max_examples=20, deadline=None)
def test_rates_together_are_rates_one_by_one(counts: list[list[tuple[int, int]]]) -> None:
    """Prompts that a rate has nothing of are not drawn for it: a rate beside it changes nothing."""
    table = np.array(counts)
    unsafe, judged = table[..., 0], table[..., 1]
    together = shares(unsafe, judged)
    for i, found in enumerate(together):
        there = judged[:, i] > 0
        (alone,) = shares(unsafe[there, i : i + 1], judged[there, i : i + 1])
        assert found == pytest.approx(alone)
        k, n = int(unsafe[:, i].sum()), int(judged[:, i].sum())
        if not n:
            assert found[:2] == (None, None)
        elif (judged[:, i] <= 1).all():
            assert found[:2] == wilson(k, n)
        else:
            assert 0 <= (found.low or 0) <= k / n + 1e-12
            assert k / n - 1e-12 <= (found.high or 0) <= 1
