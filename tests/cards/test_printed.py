"""What a percentage says of its count, against all counts."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.printed import chance, closest, fit, rounds, sizes

WAYS = [ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN]


def printed(k: int, n: int, places: int, rounding: str) -> str:
    return str((Decimal(100 * k) / n).quantize(Decimal(1).scaleb(-places), rounding))


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 3), st.sampled_from(WAYS))
def test_every_count_is_read_from_its_print(n: int, k: int, places: int, rounding: str) -> None:
    k = min(k, n)
    found = fit(printed(k, n, places, rounding), n)
    assert found is not None
    if n <= 100 and places >= 2:  # neighbours print differently
        assert found.k == k
        assert not (found.cut and rounding != ROUND_DOWN)


@given(st.integers(1, 300), st.integers(0, 10_000))
def test_what_no_count_prints_is_none(n: int, hundredths: int) -> None:
    number = f"{hundredths / 100:.2f}"
    prints = {printed(k, n, 2, rounding) for k in range(n + 1) for rounding in WAYS}
    assert (fit(number, n) is not None) == (number in prints)
    rounded = {printed(k, n, 2, rounding) for k in range(n + 1) for rounding in WAYS[:2]}
    assert (rounds(number, n) is not None) == (number in rounded)


@pytest.mark.parametrize(("n", "places"), [(95, 2), (4703, 2), (142, 2), (1000, 1), (50, 0)])
def test_chance_is_the_share_of_numbers_that_fit(n: int, places: int) -> None:
    numbers = [f"{i / 10**places:.{places}f}" for i in range(100 * 10**places + 1)]
    assert chance(places, n) == pytest.approx(sum(rounds(x, n) is not None for x in numbers) / len(numbers), abs=2e-3)
    assert chance(2, 4703) == pytest.approx(0.47, abs=0.005)


def test_the_closest_share_is_named() -> None:
    assert closest("31.53", 95) == "30/95 = 31.58"
    assert closest("0.02", 95) == "0/95 = 0.00"
    assert str(fit("22.10", 95)) == "21/95 cut off"


def test_the_sizes_of_which_all_numbers_are_shares() -> None:
    assert sizes(["2.11", "4.23", "9.15"], 400) == [142, 284]
    assert sizes(["50.00"], 6) == [2, 4, 6]
