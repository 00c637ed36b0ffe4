"""The three kinds of failure: a user's mistake, one bad row, and what may work next time."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake a person can mend; the command line prints it on one line and exits with 2."""


class RowError(Exception):
    """A deterministic failure of one row: final, counted, and no other row's business.

    Attributes:
        code: stable short code that goes into the row's ``error`` column.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code


class TransientError(Exception):
    """A failure that may pass (memory, time, a service that is down): the shard stays incomplete."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'rece'?"`` when a choice is close to ``word``, else an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
