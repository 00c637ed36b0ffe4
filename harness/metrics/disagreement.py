"""Where two detectors disagree: the verdicts of two policies over the same rows, by bands of each one's score.

A detector's numbers are as good as what it sees. Where a second, independent one flags what the first passes, and in
which band of scores, says where people should look first (``harness judge export``), and how far a threshold matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.cards.policy import PolicyCard
from harness.metrics.policies import margins, verdicts

BANDS = 10  # of scores in [0, 1]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Tally:
    """How many rows each of two policies calls unsafe."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Rows that both have a verdict of."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa, agreement beyond chance; None where there is no row, or one verdict alone."""
        if not self.n:
            return None
        first, second = (self.both + self.only_first) / self.n, (self.both + self.only_second) / self.n
        chance = first * second + (1 - first) * (1 - second)
        return None if chance == 1 else ((self.both + self.neither) / self.n - chance) / (1 - chance)


@dataclass(frozen=True)
class Band:
    """The rows whose score by one of the policies lies in [low, high); in the last band also at its upper end."""

    low: float
    high: float
    tally: Tally


@dataclass(frozen=True)
class Disagreement:
    """Two policies over the rows of one method and benchmark."""

    whole: Tally
    unjudged: int  # rows that either policy has no verdict of
    by_first: tuple[Band, ...]  # by bands of the first policy's score
    by_second: tuple[Band, ...]


def disagreement(first: PolicyCard, second: PolicyCard, scores: pa.Table) -> Disagreement:
    """The verdicts of two policies, crossed.

    A policy's score of a row is the greatest of its first rule's columns; one outside [0, 1] counts to the band at
    that end.

    Args:
        first: a policy whose scores are probabilities or the like.
        second: another one.
        scores: rows of schema SCORE.

    Raises:
        UserError: the table lacks a column of a policy.
    """
    answers = [verdicts(card, scores) for card in (first, second)]
    judged = np.logical_and.reduce([np.asarray(answer.is_valid()) for answer in answers])
    unsafe = [_mask(answer)[judged] for answer in answers]
    by_score = []
    for card in (first, second):
        level = (margins(card.model_copy(update={"others": ()}), scores) + card.rule.threshold)[judged]
        place = np.clip(np.floor(np.round(level * BANDS, 6)), 0, BANDS - 1)
        inside = [place == band for band in range(BANDS)]
        by_score.append(
            tuple(Band(i / BANDS, (i + 1) / BANDS, _tally(unsafe[0][m], unsafe[1][m])) for i, m in enumerate(inside))
        )
    return Disagreement(_tally(*unsafe), int((~judged).sum()), *by_score)


def _mask(answer: pa.Array) -> Mask:
    return np.asarray(answer.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _tally(first: Mask, second: Mask) -> Tally:
    return Tally(
        both=int((first & second).sum()),
        only_first=int((first & ~second).sum()),
        only_second=int((~first & second).sum()),
        neither=int((~first & ~second).sum()),
    )
