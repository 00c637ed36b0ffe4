"""Where two detectors of a run disagree, per score band: Markdown for people, plain data for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from harness.cards.policy import PolicyCard
from harness.metrics.cells import ResultGroup, result_groups
from harness.metrics.disagreement import Band, Disagreement, Tally, disagreement


def assemble(scores: pa.Table, first: PolicyCard, second: PolicyCard) -> list[tuple[ResultGroup, Disagreement]]:
    """The policies' verdicts crossed for each method over each benchmark that both have verdicts of.

    Raises:
        UserError: the scores lack a column of a policy.
    """
    crossed = [(group, disagreement(first, second, group.rows)) for group in result_groups(scores)]
    return [(group, one) for group, one in crossed if one.whole.n]


def plain(crossed: Sequence[tuple[ResultGroup, Disagreement]]) -> list[dict[str, Any]]:
    """As JSON holds it: which rows, the counts, kappa, and the bands."""
    return [{**group.identity(), **asdict(one), "kappa": one.whole.kappa} for group, one in crossed]


def markdown(crossed: Sequence[tuple[ResultGroup, Disagreement]], first: PolicyCard, second: PolicyCard) -> str:
    """A section for each method over each benchmark."""
    lines = [f"# {first.name} against {second.name}", ""]
    lines += [f"* first: {first.name}, {first.summary}", f"* second: {second.name}, {second.summary}"]
    for group, one in crossed:
        method = group.defense if group.variant == "base" else f"{group.defense} + {group.variant}"
        kappa = "" if one.whole.kappa is None else f"; Cohen's kappa {one.whole.kappa:.2f}"
        lines += ["", f"## {group.bench}, {method} ({group.profile})", ""]
        lines += [f"{_counts(one.whole)}, of {one.whole.n} rows; {one.unjudged} without a verdict of both{kappa}."]
        for card, bands in ((first, one.by_first), (second, one.by_second)):
            lines += ["", f"| score of {card.name} | rows | both | only first | only second | neither |"]
            lines += ["| --- | ---: | ---: | ---: | ---: | ---: |", *(_row(band) for band in bands if band.tally.n)]
    return "\n".join(lines)


def _counts(tally: Tally) -> str:
    return (
        f"Unsafe by both {tally.both}, only by the first {tally.only_first}, only by the second {tally.only_second}, "
        f"by neither {tally.neither}"
    )


def _row(band: Band) -> str:
    tally = band.tally
    numbers = (tally.n, tally.both, tally.only_first, tally.only_second, tally.neither)
    return f"| {band.low:.1f} to {band.high:.1f} | {' | '.join(map(str, numbers))} |"
