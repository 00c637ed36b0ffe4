"""Labels beside lines, in place of a legend: near the height that they belong to, none on top of another."""

from __future__ import annotations

from collections.abc import Sequence


def apart(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Heights near those wanted, at least ``step`` apart, none below ``low``.

    They are pushed up from ``low`` in their order, then down from ``high``; where there are more than fit, the lowest
    go below ``low``.

    Args:
        wanted: heights, in any order.
        step: between neighbours.
        low: least height.
        high: greatest height.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    places: dict[int, float] = {}
    last = low - step
    for i in order:
        last = max(wanted[i], last + step)
        places[i] = last
    limit = high + step
    for i in reversed(order):
        limit = min(places[i], limit - step)
        places[i] = limit
    return [places[i] for i in range(len(wanted))]
