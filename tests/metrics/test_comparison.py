from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from harness.metrics.comparison import Method, compare

VERDICT = st.sampled_from([True, False, None])


def verdicts(text: str) -> dict[tuple[str, int], bool | None]:
    """One verdict per character: u(nsafe), s(afe), - (none)."""
    return {(f"b/{i:05d}", 0): {"u": True, "s": False, "-": None}[c] for i, c in enumerate(text)}


def closed_bonferroni(ps: list[float]) -> list[float]:
    """What Holm's procedure is a shortcut for: a hypothesis falls when every intersection that holds it does."""
    subsets = [s for size in range(1, len(ps) + 1) for s in combinations(range(len(ps)), size)]
    return [max(min(1.0, len(s) * min(ps[j] for j in s)) for s in subsets if i in s) for i in range(len(ps))]


@settings(deadline=None)
@given(st.lists(st.tuples(VERDICT, VERDICT), max_size=60))
def test_p_is_mcnemars_exact_test(pairs: list[tuple[bool | None, bool | None]]) -> None:
    column = {
        ("none", "base"): {(str(i), 0): a for i, (a, _) in enumerate(pairs)},
        ("rece", "base"): {(str(i), 0): b for i, (_, b) in enumerate(pairs)},
    }
    found = compare(column)["rece", "base"]
    both = [p for p in pairs if None not in p]
    grid = [[both.count((a, b)) for b in (True, False)] for a in (True, False)]
    assert found.pairs == len(both)
    assert (found.only_reference, found.only_method) == (grid[0][1], grid[1][0])
    assert found.p == pytest.approx(mcnemar(grid, exact=True).pvalue if both else 1.0)


@settings(deadline=None)
@given(st.lists(st.text("us-", min_size=12, max_size=12), min_size=1, max_size=6))
def test_p_is_adjusted_after_holm_within_the_defenses(columns: list[str]) -> None:
    column: dict[Method, dict[tuple[str, int], bool | None]] = {("none", "base"): verdicts("u" * 12)}
    column |= {(f"d{i}", "base"): verdicts(text) for i, text in enumerate(columns)}
    compared = compare(column)
    found = [compared[f"d{i}", "base"] for i in range(len(columns))]
    assert [f.p_holm for f in found] == pytest.approx(closed_bonferroni([f.p or 0.0 for f in found]))


def test_a_regeneration_is_compared_with_what_it_began_from_and_adjusted_apart() -> None:
    column = {
        ("none", "base"): verdicts("uuuuuuuuuu"),
        ("none", "resafe"): verdicts("ssssssssss"),
        ("rece", "base"): verdicts("uuuuussssu"),
        ("rece", "resafe"): verdicts("sssssssssu"),
    }
    found = compare(column)
    assert found["none", "resafe"].against == "none/base"
    assert found["rece", "resafe"].against == "rece/base"
    assert found["rece", "resafe"].p == pytest.approx(2 / 2**5)
    assert found["rece", "resafe"].p_holm == pytest.approx(2 / 2**5)  # the other of its family is far smaller
    assert found["none", "resafe"].p_holm == pytest.approx(2 * 2 / 2**10)
    assert found["rece", "base"].p_holm == found["rece", "base"].p  # alone in its family


def test_samples_of_a_prompt_are_no_more_prompts() -> None:
    """Three prompts of ten samples each: p is that of three prompts, not of thirty."""

    def sampled(text: str) -> dict[tuple[str, int], bool | None]:
        return {(row_id, s): verdict for (row_id, _), verdict in verdicts(text).items() for s in range(10)}

    few = compare({("none", "base"): sampled("uuu"), ("rece", "base"): sampled("sss")})
    found = few["rece", "base"]
    assert (found.pairs, found.only_reference, found.only_method) == (30, 30, 0)
    assert (found.p, found.p_holm) == (2 / 2**3, 2 / 2**3)
    assert not any(method.best for method in few.values())  # three prompts do not show that one is worse
    many = compare({("none", "base"): sampled("u" * 9), ("rece", "base"): sampled("s" * 9)})
    assert many["rece", "base"].p == pytest.approx(2 / 2**9)
    assert not many["none", "base"].best


def test_best_are_the_lowest_and_those_not_significantly_above_it() -> None:
    found = compare(
        {
            ("none", "base"): verdicts("u" * 20),
            ("uce", "base"): verdicts("u" * 3 + "s" * 17),
            ("rece", "base"): verdicts("u" * 2 + "s" * 18),
        }
    )
    assert {name[0] for name, c in found.items() if c.best} == {"uce", "rece"}


def test_ten_methods_need_more_than_one_does_to_be_worse_than_the_best() -> None:
    """Six discordant rows: p = 1/32 alone is below 5%, adjusted for ten tests it is not."""
    alone = {("none", "base"): verdicts("u" * 6 + "s" * 6), ("a", "base"): verdicts("s" * 12)}
    assert not compare(alone)["none", "base"].best
    many = alone | {(f"d{i}", "base"): verdicts("s" * 12) for i in range(9)}
    assert comb(6, 0) * 2 / 2**6 * 10 > 0.05
    assert not any(method.best for method in compare(many).values())  # nobody is worse, so nobody is best


def test_a_single_method_is_not_called_best() -> None:
    assert not compare({("none", "base"): verdicts("us")})["none", "base"].best


def test_a_method_without_any_verdict_is_not_called_best() -> None:
    column = {("none", "base"): verdicts("us"), ("a", "base"): verdicts("--"), ("b", "base"): verdicts("ss")}
    found = compare(column)
    assert not found["a", "base"].best
    assert found["a", "base"].pairs == 0
    assert found["a", "base"].p == 1.0


def test_without_none_there_is_nothing_to_compare_with() -> None:
    found = compare({("a", "base"): verdicts("us"), ("b", "base"): verdicts("ss")})
    assert {(c.against, c.p, c.p_holm) for c in found.values()} == {(None, None, None)}


@settings(deadline=None)
@given(st.text("us-", min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(text: str, random: object) -> None:
    none, other = verdicts(text), verdicts(text[::-1])
    shuffled = list(other.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    column = {("none", "base"): none, ("a", "base"): other}
    assert compare(column) == compare(column | {("a", "base"): dict(shuffled)})
