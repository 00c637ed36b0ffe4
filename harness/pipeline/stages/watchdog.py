"""What ends a process that hangs: a C thread that needs no lock of Python's writes every stack down and exits.

From there, a hang is a death like any other. One clock at a time runs in a process; a block inside another's has a
clock of its own, and the outer one starts anew after it: what takes long for a reason is not the outer block's hang.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO


class _Clock(NamedTuple):
    limit_s: float
    trace: TextIO


_running: list[_Clock] = []  # innermost last


@contextmanager
def watched(limit_s: float, trace: Path) -> Iterator[None]:
    """End this process, with every stack written to ``trace``, if the block says nothing for ``limit_s`` seconds."""
    trace.parent.mkdir(parents=True, exist_ok=True)
    try:
        with trace.open("w") as file:
            _running.append(_Clock(limit_s, file))
            alive()
            try:
                yield
            finally:
                _running.pop()
                alive()
    finally:
        trace.unlink(missing_ok=True)


def alive() -> None:
    """Start the innermost clock anew: what it watches has come a step further."""
    if _running:
        faulthandler.dump_traceback_later(_running[-1].limit_s, exit=True, file=_running[-1].trace)
    else:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def patient() -> Iterator[None]:
    """No clock runs in the block, as while it waits for another process that is at work."""
    faulthandler.cancel_dump_traceback_later()
    try:
        yield
    finally:
        alive()
