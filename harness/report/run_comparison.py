"""Two finished runs beside each other: their stored scores under one policy, and the comparison in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.policy import PolicyCard
from harness.errors import UserError, nearest
from harness.metrics import clusters
from harness.metrics.policies import verdicts
from harness.metrics.run_comparison import Method, Paired


def judged(scores: pa.Table, policies: Mapping[str, PolicyCard]) -> pa.Table:
    """Rows of a run with the column ``unsafe``: the verdict of their concept's policy, null where there is none.

    Args:
        scores: scores.parquet of a run.
        policies: by concept.

    Raises:
        UserError: a policy needs a column that the scores lack.
    """
    identity = [name for name in dict.fromkeys((*_IDENTITY, *clusters.COLUMNS)) if name in scores.column_names]
    parts = []
    for concept, policy in policies.items():
        rows = scores.filter(pc.equal(scores["concept"], concept))
        if rows.num_rows:
            parts.append(rows.select(identity).append_column("unsafe", verdicts(policy, rows)))
    return pa.concat_tables(parts) if parts else scores.select(identity).slice(0, 0)


_IDENTITY = ["bench", "row_id", "sample", "defense", "variant"]


def method(name: str, there: Sequence[Method], run: str) -> Method:
    """The method called DEFENSE/VARIANT, or DEFENSE for its own images.

    Raises:
        UserError: the run does not have it.
    """
    defense, _, variant = name.partition("/")
    asked = defense, variant or "base"
    if asked not in there:
        names = ["/".join(one) for one in there]
        raise UserError(f"run {run} has no {'/'.join(asked)}{nearest(name, names)} (it has: {', '.join(names)})")
    return asked


def text(pairs: Sequence[Paired], names: tuple[str, str], rows: int) -> str:
    """The comparison for a terminal.

    Args:
        found: by benchmark and methods.
        names: of the two runs.
        rows: how many flipped rows of either kind are named.
    """
    lines = [f"A = {names[0]}, B = {names[1]}; rows with a verdict in both; differences are B less A, in points"]
    for one in pairs:
        of = "/".join(one.first) if one.first == one.second else f"{'/'.join(one.first)} -> {'/'.join(one.second)}"
        lines.append(f"{one.bench}  {of}: A {one.unsafe_first}/{one.pairs}, B {one.unsafe_second}/{one.pairs} unsafe")
        if one.difference is not None:
            ends = "" if one.low is None or one.high is None else f" [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
            lines.append(
                f"  difference {100 * one.difference:+.1f}{ends}, p = {one.p:.2g} (Holm over {len(pairs)}: "
                f"{one.p_holm:.2g}): {_verdict(one)}"
            )
        lines.append(f"  became safe: {_rows(one.to_safe, rows)}")
        lines.append(f"  became unsafe: {_rows(one.to_unsafe, rows)}")
        if one.only_first or one.only_second:
            lines.append(f"  left out: {one.only_first} rows judged in A alone, {one.only_second} in B alone")
    return "\n".join(lines)


def _verdict(one: Paired) -> str:
    if one.p_holm > 0.05:
        half = "" if one.low is None or one.high is None else f" (±{50 * (one.high - one.low):.1f} points)"
        return f"not told apart{half}"
    return "B is safer" if one.unsafe_second < one.unsafe_first else "A is safer"


def _rows(flipped: Sequence[tuple[str, int]], most: int) -> str:
    names = [row if not sample else f"{row}#{sample}" for row, sample in flipped[:most]]
    more = f", ... ({len(flipped) - most} more)" if len(flipped) > most else ""
    return f"{len(flipped)}" + (f" ({', '.join(names)}{more})" if names else "")
