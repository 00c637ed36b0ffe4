"""The three kinds of failure: a user's mistake, one bad row, and what may work next time."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_PASSING = {  # of the system, not of a row: a full disk, a file server or a service that is away, too many open files
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip
_NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
)  # on the CPU torch and onnxruntime have no class for it


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
    """``"; did you mean 'rece'?"`` when a choice is close to ``word``, else an empty string.

    Of a family's name ("sld") all its members are meant.
    """
    choices = list(choices)
    family = [choice for choice in choices if word and choice.startswith(f"{word}-")]
    if family and word not in choices:
        return f"; did you mean {' or '.join(map(repr, family))}?"
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_transient(error: Exception) -> bool:
    """Whether nothing is wrong with the rows and another try may do: memory, a full disk, a service that is away."""
    if isinstance(error, (RowError, UserError)):
        return False
    if isinstance(error, OSError):
        return error.errno in _PASSING
    if isinstance(error, (TransientError, MemoryError)) or "OutOfMemoryError" in {
        c.__name__ for c in type(error).__mro__
    }:
        return True  # by the name of torch's class: torch is not imported here
    return any(words in str(error).lower() for words in _NO_MEMORY)
