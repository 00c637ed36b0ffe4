"""What a printed percentage says of the count behind it: which k of n gives it, and how many numbers fit an n."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple


class Fit(NamedTuple):
    """A count that gives the printed number."""

    k: int
    n: int
    cut: bool  # only with the digits after the printed ones cut off, not rounded

    def __str__(self) -> str:
        return f"{self.k}/{self.n}" + (" cut off" if self.cut else "")


def decimals(number: str) -> int:
    """How many digits are printed after the point."""
    return max(0, -int(Decimal(number).as_tuple().exponent))


def fit(number: str, n: int) -> Fit | None:
    """The k for which 100 k/n prints as ``number``: rounded (a half either way), or else cut off; null without one.

    Args:
        number: percent with its decimals, as printed.
        n: rows of the benchmark.
    """
    value = Fraction(number)
    unit = Fraction(1, 10 ** decimals(number))
    nearest = value * n / 100
    candidates = [k for k in range(int(nearest) - 1, int(nearest) + 3) if 0 <= k <= n]
    rounded = [k for k in candidates if abs(Fraction(100 * k, n) - value) <= unit / 2]
    cut = [k for k in candidates if value <= Fraction(100 * k, n) < value + unit]
    k = min(rounded or cut, key=lambda k: abs(k - nearest), default=None)
    return None if k is None else Fit(k, n, not rounded)


def rounds(number: str, n: int) -> Fit | None:
    """``fit`` without cut digits: what an explanation other than the column's own n has to meet."""
    best = fit(number, n)
    return None if best is None or best.cut else best


def chance(places: int, n: int) -> float:
    """Share of all percentages with so many decimals that some k of n gives when rounded: 0.47 for 2 and n = 4703.

    Args:
        places: digits after the point.
        n: rows.
    """
    numbers: int = 100 * 10**places + 1
    return min(1.0, (n + 1) / numbers)


def closest(number: str, n: int) -> str:
    """The percentage of n nearest to ``number``, with as many decimals: what may have been meant."""
    k = min(n, max(0, round(Fraction(number) * n / 100)))
    return f"{k}/{n} = {100 * k / n:.{decimals(number)}f}"


def sizes(numbers: Iterable[str], up_to: int) -> list[int]:
    """Every n to ``up_to`` of which all the numbers are rounded percentages."""
    given = list(dict.fromkeys(numbers))
    return [n for n in range(1, up_to + 1) if all(rounds(number, n) for number in given)]
