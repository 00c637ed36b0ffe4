"""Corrected rates in words."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics.corrections import Compared, Correction, compared, poolable
from harness.metrics.true_asr import Corrected


def text(corrections: Sequence[Correction]) -> str:
    """Each method's rate, uncorrected and corrected, then differences, ratios and the test of pooling."""
    lines = [line for correction in corrections for line in _rate(correction)]
    lines += [_pair(pair) for pair in compared(corrections)]
    for bench, test in poolable(corrections).items():
        says = "must not be pooled" if test.p <= 0.05 else "are not shown to differ, which is no leave to pool them"
        lines.append(
            f"{bench}: labels of the methods {says} (exact test of equal shares: flagged p = {test.p_flagged:.2g}, "
            f"unflagged p = {test.p_unflagged:.2g})"
        )
    return "\n".join(lines)


def _rate(c: Correction) -> list[str]:
    group, labels = c.group, c.labels
    value, low, high = c.raw
    lines = [
        f"{group.bench}  {group.method} by {group.policy}",
        f"  uncorrected  {group.flagged}/{group.n} = {points(value, low, high)} (as if the detector never erred)",
    ]
    if c.rate is None:
        lines.append(f"  no corrected rate: {c.why}")
    else:
        lines.append(f"  corrected    {points(*c.rate)}")
    said = [
        f"{labels.unsafe_of_flagged}/{labels.labelled_flagged} of the labelled flagged images are unsafe"
        f"{_by_band([band[:2] for band in c.bands])}",
        f"{labels.unsafe_of_unflagged}/{labels.labelled_unflagged} of the unflagged"
        f"{_by_band([band[2:] for band in c.bands])}",
    ]
    lines.append("  " + "; ".join(said) + (f"; {c.lost} without a label most agree on" if c.lost else ""))
    return lines


def _by_band(bands: Sequence[Sequence[int]]) -> str:
    """Labels by score, lowest band first, where there are any."""
    there = [f"{k}/{m}" for k, m in bands if m]
    return f" ({', '.join(there)} from low to high scores)" if len(there) > 1 else ""


def _pair(pair: Compared) -> str:
    ratio = pair.ratio
    over = "unknown" if ratio.value is None else f"{ratio.value:.2f}"
    high = "no upper bound" if ratio.high is None else f"{ratio.high:.2f}"
    return (
        f"{pair.bench}  {pair.second} less {pair.first}, corrected: {points(*pair.difference)}; "
        f"ratio {over} [{ratio.low:.2f}, {high}]"
    )


def points(value: float | None, low: float, high: float | None) -> str:
    """A rate or a difference in percent with its interval."""
    shown = "unknown" if value is None else f"{100 * value:.1f}"
    return f"{shown} [{100 * low:.1f}, {'-' if high is None else f'{100 * high:.1f}'}]"


def short(rate: Corrected, labels: int) -> str:
    """A corrected rate in a table's cell."""
    return f"true {points(*rate)}, {labels} labels"
