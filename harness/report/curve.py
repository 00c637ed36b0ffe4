"""ASR against threshold of a run, with the point of each published policy; drawn by ``harness.report.plots``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.cells import GROUP, Policies, ResultGroup, result_groups
from harness.metrics.clusters import Clusters, clusters
from harness.metrics.threshold import Point, curve, grid

COLUMNS = ("kind", *GROUP, "policy", "op", "threshold", "k", "n", "value", "low", "high")


class Mark(NamedTuple):
    """Where a published policy over the same scorer stands; off the curve when it asks other columns."""

    policy: str
    op: str
    on_curve: bool
    point: Point


@dataclass(frozen=True)
class Curve:
    """One method over one benchmark."""

    group: ResultGroup
    policy: PolicyCard
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point of the curve (kind "curve") and each mark (kind "policy")."""
        rows = [self._row("curve", self.policy.name, self.policy.rule.op, point) for point in self.points]
        return rows + [self._row("policy", mark.policy, mark.op, mark.point) for mark in self.marks]

    def _row(self, kind: str, policy: str, op: str, point: Point) -> dict[str, Any]:
        numbers = point._asdict() | {"value": point.value}
        row = {"kind": kind, **self.group.identity(), "policy": policy, "op": op, **numbers}
        return {name: row[name] for name in COLUMNS}


def curves(scores: pa.Table, chosen: Mapping[str, PolicyCard], policies: Iterable[PolicyCard]) -> list[Curve]:
    """A curve for each method over each benchmark whose rows have verdicts.

    Args:
        scores: a run's rows, schema SCORE.
        chosen: by concept of the benchmark, whose threshold moves; a group of another concept has no curve.
        policies: candidates for marks: those of the chosen one's scorer and concept whose columns are there.

    Raises:
        UserError: the scores lack a column of a chosen policy, or nothing was judged by it.
    """
    known = list(policies)
    names = clusters(scores)
    curves = []
    for group in result_groups(scores):
        policy = chosen.get(group.concept)
        if policy is None:
            continue
        marks = _marks(policy, known, group.rows, names)
        steps = grid(policy, group.rows, [mark.point.threshold for mark in marks])
        points = tuple(curve(policy, group.rows, steps, names))
        if any(point.n for point in points):
            curves.append(Curve(group, policy, points, marks))
    if not curves:
        raise UserError(
            f"no row of this run has a verdict by {', '.join(p.name for p in chosen.values()) or 'any policy'}"
        )
    return curves


def by_main_policies(scores: pa.Table, policies: Policies, published: Iterable[PolicyCard] = ()) -> list[Curve]:
    """The curves of a run by each concept's main policy; none where nothing was judged.

    Args:
        scores: a run's rows, schema SCORE.
        policies: of the run, by concept, the main one first.
        published: of other papers; they and the run's own are candidates for marks.
    """
    main = {concept: chosen[0] for concept, chosen in policies.items() if chosen}
    known = {p.name: p for p in (*(q for chosen in policies.values() for q in chosen), *published)}
    try:
        return curves(scores, main, known.values())
    except UserError:  # a rule over columns of several types, or nothing that was judged
        return []


def _marks(policy: PolicyCard, known: Sequence[PolicyCard], rows: pa.Table, names: Clusters) -> tuple[Mark, ...]:
    marks = []
    for other in known:
        columns = [name for clause in other.clauses for name in clause.any_of]
        there = set(columns) <= set(rows.column_names)
        if there and other.unit == "image" and (other.scorer, other.concept) == (policy.scorer, policy.concept):
            (point,) = curve(other, rows, [other.rule.threshold], names)
            same = set(other.rule.any_of) == set(policy.rule.any_of) and other.others == policy.others
            marks.append(Mark(other.name, other.rule.op, same and other.rule.op == policy.rule.op, point))
    return tuple(marks)
