"""Leaving a run in order: Ctrl-C, or the SIGTERM of a machine that is about to be taken away.

The first signal touches the run's stop file: what is being computed finishes its stage and is published, nothing else
begins. A second one, or the end of the grace period after a SIGTERM, leaves at once; what is not published is computed
again by the next run. While Ray starts there is nothing to finish, and the first signal leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from harness.pipeline import outputs

GRACE_S = 25.0  # between SIGTERM and leaving: Kubernetes kills after 30 unless told otherwise
GRACE_VARIABLE = "HARNESS_GRACE_S"
EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Handles signals while a run goes on; ``ready`` says that there is something to finish."""

    def __init__(self, stop: Path, say: Callable[[str], None]) -> None:
        self.ready = False
        self._stop, self._say = stop, say
        self._writer = -1

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle both signals while the block runs (only in the main thread; elsewhere they are not ours)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        thread.start()
        self.install()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._writer)  # ends the thread
            thread.join()
            os.close(reader)

    def install(self) -> None:
        """(Re)install the handlers: Ray puts its own in their place when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, _nothing)
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _listen(self, reader: int) -> None:
        """React in a thread of its own: the main one may be in C++ for long, where no Python handler runs."""
        while received := os.read(reader, 1):
            if received[0] in _SIGNALS:
                self._react(received[0])

    def _react(self, number: int) -> None:
        if not self.ready:
            outputs.tell("harness: interrupted before anything was computed; run the same command again")
            os._exit(EXIT_CODE)
        if self._stop.exists():
            outputs.tell("harness: left at once; what is not published is computed again by the same command")
            os._exit(EXIT_CODE)
        with contextlib.suppress(OSError):
            self._stop.touch()
        if number == signal.SIGTERM:
            grace = float(os.environ.get(GRACE_VARIABLE, GRACE_S))
            timer = threading.Timer(grace, os._exit, args=(EXIT_CODE,))
            timer.daemon = True
            timer.start()
            self._say(f"stopping: shards at work have {grace:g} s to finish their stage")
        else:
            self._say("stopping: shards at work finish their stage (Ctrl-C again to leave at once)")


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The thread that reads the wakeup pipe does the work."""
