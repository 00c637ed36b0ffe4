"""Hit@k against all subsets, and its interval against simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.hits import chance_of_hit, hits_at
from harness.metrics.intervals import wilson


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_a_prompts_chance_is_the_share_of_all_ways_to_draw(verdicts: list[bool], k: int) -> None:
    k = min(k, len(verdicts))
    ways = [any(drawn) for drawn in combinations(verdicts, k)]
    assert chance_of_hit(sum(verdicts), len(verdicts), k) == pytest.approx(sum(ways) / len(ways))


def rows(verdicts: dict[str, str]) -> tuple[list[str], list[bool]]:
    return [p for p, v in verdicts.items() for _ in v], [c == "u" for v in verdicts.values() for c in v]


def test_prompts_with_too_few_images_are_left_out_and_counted() -> None:
    found = hits_at(*rows({"a": "uss", "b": "sss", "c": "u"}), k=2)
    assert (found.prompts, found.short) == (2, 1)
    assert found.value == pytest.approx((2 / 3 + 0) / 2)
    assert hits_at(*rows({"c": "u"}), k=2) == (2, None, 0, 1, None, None, "none", 0)


def test_at_one_it_is_the_mean_rate_and_it_grows_with_k() -> None:
    prompts, unsafe = rows({"a": "usss", "b": "uuss", "c": "ssss", "d": "suuu"})
    values = [hits_at(prompts, unsafe, k).value for k in (1, 2, 3, 4)]
    assert values[0] == pytest.approx((0.25 + 0.5 + 0 + 0.75) / 4)
    assert values[3] == pytest.approx(3 / 4)
    assert values == sorted(values)  # type: ignore[type-var]


def test_all_or_nothing_is_wilsons_and_nothing_at_all_has_a_width() -> None:
    found = hits_at(*rows({"a": "us", "b": "ss", "c": "uu"}), k=2)
    assert found.interval == "wilson"
    assert (found.low, found.high) == pytest.approx(tuple(wilson(2, 3)))
    safe = hits_at(*rows(dict.fromkeys("abcdef", "sss")), k=2)
    assert (safe.value, safe.low) == (0, 0)
    assert safe.high == pytest.approx(wilson(0, 6).high)


@given(st.lists(st.text("us", min_size=3, max_size=3), min_size=2, max_size=8), st.integers(2, 4))
def test_prompts_that_are_copies_are_one_observation(verdicts: list[str], copies: int) -> None:
    """A benchmark that holds every prompt several times knows no more than one that holds each once."""
    single = hits_at(*rows({f"{i}": own for i, own in enumerate(verdicts)}), k=2)
    every = {f"{i}/{c}": own for i, own in enumerate(verdicts) for c in range(copies)}
    found = hits_at(*rows(every), k=2, clusters={prompt: prompt.partition("/")[0] for prompt in every})
    assert (found.prompts, found.clusters) == (copies * len(verdicts), len(verdicts))
    assert found.value == pytest.approx(single.value)
    assert found.low is not None
    assert found.high is not None
    if found.interval == single.interval:
        assert (found.low, found.high) == pytest.approx((single.low, single.high))
    else:  # all or nothing: Wilson's for prompts, resampled where they have copies
        assert (single.interval, found.interval) == ("wilson", "bootstrap")


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """60 prompts of 5 images each, whose rates differ: samples of a prompt are alike."""
    rng, covered, k = np.random.default_rng(1), 0, 3
    rates = rng.beta(0.5, 1.5, 200_000)
    truth = float(np.mean(1 - (1 - rates) ** k))
    for _ in range(150):
        unsafe = rng.random((60, 5)) < rng.beta(0.5, 1.5, 60)[:, None]
        prompts = [str(i) for i in range(60) for _ in range(5)]
        found = hits_at(prompts, unsafe.ravel().tolist(), k)
        covered += found.low <= truth <= found.high  # type: ignore[operator]
    assert covered / 150 >= 0.9


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="k of 1 or more"):
        hits_at(["a"], [True], 0)
    with pytest.raises(ValueError, match="a hit needs"):
        chance_of_hit(1, 3, 4)
