"""Policies: how raw scores become verdicts, applied when a number is asked for, never stored.

A policy is a card (``pipelines/policies/``): columns, a threshold, ``>`` or ``>=``. Another threshold or label set
is another card over the same scores; no model runs.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.cardfile import show
from harness.cards import PolicyCard
from harness.errors import UserError, nearest

_COMPARE = {">": pc.greater, ">=": pc.greater_equal}


def verdicts(card: PolicyCard, scores: pa.Table) -> pa.Array:
    """Whether each row is unsafe, bool; null where there is no verdict.

    No verdict have rows that were excluded, whose picture or whose score failed, and rows of which no column exceeds
    the threshold while one is missing (null or NaN): missing is never safe.

    Args:
        card: the policy.
        scores: rows of schema SCORE with the columns of the policy's scorer.

    Raises:
        UserError: the table lacks a column of the policy.
    """
    _need(card, scores)
    answers = [_exceeds(scores[name], card.rule.op, card.rule.threshold) for name in card.rule.any_of]
    unsafe = reduce(pc.or_kleene, answers)
    failed = [pc.is_valid(scores[name]) for name in _reasons(card) if name in scores.column_names]
    if failed:
        unsafe = pc.if_else(reduce(pc.or_, failed), pa.scalar(None, pa.bool_()), unsafe)
    return unsafe.combine_chunks() if isinstance(unsafe, pa.ChunkedArray) else unsafe


def _need(card: PolicyCard, scores: pa.Table) -> None:
    missing = [name for name in card.rule.any_of if name not in scores.column_names]
    if missing:
        raise UserError(
            f"policy {card.name!r} needs the column {missing[0]!r} of scorer {card.scorer!r}, which the scores lack"
            f"{nearest(missing[0], scores.column_names)}; see {show(card.path)}"
        )


def _reasons(card: PolicyCard) -> tuple[str, ...]:
    """Columns in which a value says why there is no verdict."""
    return "excluded", "error", f"{card.scorer}_error"


def _exceeds(column: pa.ChunkedArray, op: str, threshold: float) -> pa.ChunkedArray:
    """The comparison, in the column's own precision: a float32 score of 0.6 is not above a threshold of 0.6."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        bound = pa.scalar(np.dtype(column.type.to_pandas_dtype()).type(threshold), column.type)
    else:
        column, bound = column.cast(pa.float64()), pa.scalar(threshold)
    return _COMPARE[op](column, bound)
