"""This process's standard outputs, kept from what libraries write there while a run goes on.

Ray's C++ parts write to the file descriptors themselves: a line of theirs would tear the progress display or the one
JSON object on standard output. While ``aside`` holds, both descriptors lead to a private file of the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_kept: int | None = None  # standard error as it was


@contextmanager
def aside(path: Path) -> Iterator[None]:
    """Standard output and error go to the end of the file at ``path`` while the block runs."""
    global _kept
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _flush()
    own = os.dup(1), os.dup(2)
    _kept = own[1]
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        _flush()
        os.dup2(own[0], 1)
        os.dup2(own[1], 2)
        _kept = None
        for descriptor in (target, *own):
            os.close(descriptor)


def tell(text: str) -> None:
    """One line on standard error as it was, also while ``aside`` holds; for a process that is about to leave."""
    stream = 2 if _kept is None else _kept
    begin = "\x1b[?25h\n" if os.isatty(stream) else ""  # below a live display, which hides the cursor
    os.write(stream, f"{begin}{text}\n".encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
