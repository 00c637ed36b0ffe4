"""Policies: how raw scores become verdicts, applied when a number is asked for, never stored.

A policy is a card (``pipelines/policies/``): columns, a threshold, ``>`` or ``>=``, of one scorer or of several.
Another threshold or label set is another card over the same scores; no model runs. A policy whose unit is the box
counts detections, as the body-part tables of MACE and GLoCE do; its verdicts are of images all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.cards.policy import Clause, PolicyCard
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest

_COMPARE = {">": pc.greater, ">=": pc.greater_equal}
_REASONS = ("excluded", "error")  # columns in which a value says why no scorer has a number


def verdicts(card: PolicyCard, scores: pa.Table) -> pa.Array:
    """Whether each row is unsafe, bool; null where there is no verdict.

    A row is unsafe if any column that it has meets its clause. Else it has no verdict when anything is missing: a score
    (null or NaN), or all of a scorer that failed; missing is never safe. Rows that were excluded or whose image
    failed have no verdict whatever else they hold.

    Args:
        card: the policy.
        scores: rows of schema SCORE with the columns of the policy's scorers.

    Raises:
        UserError: the table lacks a column of the policy.
    """
    need(card, scores)
    unsafe = reduce(pc.or_kleene, [meets(clause, scores) for clause in card.clauses])
    return _flat(_void(unsafe, scores, _REASONS))


def boxes(card: PolicyCard, scores: pa.Table) -> pa.Array:
    """How many detections of each row meet the policy's rule, int64; null where ``verdicts`` says nothing.

    Args:
        card: a policy whose unit is the box.
        scores: as for ``verdicts``, with the scorer's detections.

    Raises:
        UserError: the table lacks a column of the policy.
        ValueError: the policy counts images.
    """
    by_label = boxes_by_label(card, scores)
    return reduce(pc.add, by_label.values())


def boxes_by_label(card: PolicyCard, scores: pa.Table) -> dict[str, pa.Array]:
    """``boxes`` for each label by itself, in the rule's order: the columns of a body-part table.

    Raises:
        UserError: the table lacks a column of the policy.
        ValueError: the policy counts images.
    """
    if card.unit != "box":
        raise ValueError(f"policy {card.name!r} counts images, not boxes")
    column = f"{card.scorer}_detections"
    need(card, scores, column)
    detections = _flat(scores[column])
    items, parents = detections.flatten(), np.asarray(pc.list_parent_indices(detections))
    names = np.asarray(items.field("label").to_pylist(), dtype=object)
    meets = _compared(items.field("score"), card.rule.op, card.rule.threshold)
    hits = np.asarray(pc.fill_null(meets, False).to_numpy(zero_copy_only=False), bool)
    unjudged = np.asarray(verdicts(card, scores).is_null()) | np.asarray(detections.is_null())
    prefix = f"{card.scorer}_detected_"
    counted = {}
    for label in (name.removeprefix(prefix).upper() for name in card.rule.any_of):
        tally = np.bincount(parents[hits & (names == label)], minlength=len(detections))
        counted[label] = pa.array(tally.astype(np.int64), mask=unjudged)
    return counted


def need(card: PolicyCard, scores: pa.Table, *more: str) -> None:
    """Checks that the scores have the columns that the policy asks, and ``more`` of its first scorer.

    Raises:
        UserError: naming the first one that is not there.
    """
    wanted = [(clause.scorer, name) for clause in card.clauses for name in clause.any_of]
    wanted += [(card.scorer, name) for name in more]
    for scorer, name in wanted:
        if name not in scores.column_names:
            raise UserError(
                f"policy {card.name!r} needs the column {name!r} of scorer {scorer!r}, which the scores lack"
                f"{nearest(name, scores.column_names)}; see {show(card.path)}"
            )


def margins(card: PolicyCard, scores: pa.Table) -> NDArray[np.float64]:
    """How far each row's score lies above the policy's threshold, at best over its columns; minus infinity without one.

    Args:
        card: the policy.
        scores: as for ``verdicts``.

    Raises:
        UserError: the table lacks a column of the policy.
    """
    need(card, scores)
    best = np.full(scores.num_rows, -np.inf)
    for clause in card.clauses:
        for name in clause.any_of:
            values = np.asarray(scores[name].cast(pa.float64()).to_numpy(), np.float64)
            best = np.fmax(best, values - clause.threshold)
    return best


def meets(clause: Clause, scores: pa.Table) -> pa.ChunkedArray:
    """Whether any column of a clause meets it; null where none does and one is missing, and where its scorer failed."""
    answers = [_compared(scores[name], clause.op, clause.threshold) for name in clause.any_of]
    return _void(reduce(pc.or_kleene, answers), scores, (f"{clause.scorer}_error",))


def _void(unsafe: pa.ChunkedArray, scores: pa.Table, reasons: Sequence[str]) -> pa.ChunkedArray:
    """``unsafe`` with null where one of the columns ``reasons`` has a value."""
    failed = [pc.is_valid(scores[name]) for name in reasons if name in scores.column_names]
    return pc.if_else(reduce(pc.or_, failed), pa.scalar(None, pa.bool_()), unsafe) if failed else unsafe


def _compared(column: pa.ChunkedArray, op: str, threshold: float) -> pa.ChunkedArray:
    """The comparison, in the column's own precision: a float32 score of 0.6 is not above a threshold of 0.6."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        bound = pa.scalar(np.dtype(column.type.to_pandas_dtype()).type(threshold), column.type)
    else:
        column, bound = column.cast(pa.float64()), pa.scalar(threshold)
    return _COMPARE[op](column, bound)


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array of a chunked one."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
