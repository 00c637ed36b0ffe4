"""Progress on long work, always on standard error: a live table in a terminal, a line at least every ten seconds
elsewhere.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.live import Live

    from harness.pipeline.progress import Snapshot, StageProgress
    from harness.pipeline.run_status import RunStatus

_FIRST_LINE_S = 1.0  # what is over sooner says nothing
_FIRST_PLAIN_LINE_S = 4.0  # in a file or a pipe: a mistake found by then is all that is said
_NEWS_S = 3.0  # between lines that say something else
_LINE_EVERY_S = 9.0  # between lines that say the same thing
_TICK_S = 0.5
_BAR = 24  # characters


class Display:
    """Call it with a ``Snapshot``; it shows the last one, and that time goes on."""

    def __init__(self, quiet: bool = False, verbose: bool = False, doing: str = "planning") -> None:
        """Args: quiet: show nothing. verbose: also say each shard that is done. doing: until something else is said."""
        self._quiet, self._verbose = quiet, verbose
        self._doing = doing
        self._snapshot: Snapshot | None = None
        self._live: Live | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._started = self._last_line = time.monotonic()
        self._last_doing = self._notice = ""
        self._rows: dict[str, int] = {}

    def __enter__(self) -> Display:
        if self._quiet:
            return self
        self._stream, self._own_stream = _standard_error()
        if self._stream.isatty():
            self._live = self._make_live()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._quiet:
            return
        self._done.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
        elif self._snapshot is not None and self._snapshot.stages:
            self._line(self._snapshot)
        if self._own_stream:
            self._stream.close()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show this from now on."""
        if self._quiet:
            return
        with self._lock:
            self._doing = snapshot.doing or self._doing
            if snapshot.stages:
                self._snapshot = snapshot
            if snapshot.notice != self._notice:
                self._notice = snapshot.notice
                self._say(self._notice)
        if self._verbose:
            self._say_new_rows(snapshot)

    def _tick(self) -> None:
        while not self._done.wait(_TICK_S):
            with self._lock:
                self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            if now - self._started >= _FIRST_LINE_S:
                if not self._live.is_started:
                    self._live.start()
                self._live.update(self._table(), refresh=True)
            return
        kind = re.sub(r"\d+", "#", self._doing)  # what is done, not how far it is
        wait = _LINE_EVERY_S if kind == self._last_doing else _NEWS_S if self._last_doing else _FIRST_PLAIN_LINE_S
        if now - self._last_line >= wait:
            self._last_line, self._last_doing = now, kind
            if self._snapshot is not None and any(s.done for s in self._snapshot.stages.values()):
                self._line(self._snapshot)
            else:
                self._write(self._doing)

    def _line(self, snapshot: Snapshot) -> None:
        at_work = {stage: s for stage, s in snapshot.stages.items() if 0 < s.done < s.total}
        through = sum(s.done == s.total for s in snapshot.stages.values())
        rows = [f"{stage} {s.done}/{s.total} rows" for stage, s in at_work.items()]
        stages = f"{through} of {len(snapshot.stages)} stages done"
        self._write("; ".join(part for part in (self._doing, *rows, stages, extent(snapshot), eta(snapshot)) if part))

    def _write(self, text: str) -> None:
        self._stream.write(f"[{time.monotonic() - self._started:4.0f} s] {text}\n")

    def _say_new_rows(self, snapshot: Snapshot) -> None:
        for stage, s in snapshot.stages.items():
            if s.done != self._rows.get(stage, s.done):
                self._say(f"{stage}: {s.done} of {s.total} rows, {rate(s)}")
            self._rows[stage] = s.done

    def _say(self, text: str) -> None:
        if self._live is not None and self._live.is_started:
            self._live.console.print(text, highlight=False)
        else:
            self._write(text)

    def _make_live(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        return Live(console=Console(file=self._stream), auto_refresh=False, transient=False)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        seconds = time.monotonic() - self._started
        head = Text.assemble((f"{_clock(seconds)}  ", "bold"), self._doing, overflow="ellipsis", no_wrap=True)
        if self._snapshot is None or not self._snapshot.stages:
            return head
        table = Table(box=None, show_header=False, pad_edge=False)
        for right in (True, False, True, False):
            table.add_column(justify="right" if right else "left")
        for stage, s in self._snapshot.stages.items():
            bar = ProgressBar(total=max(s.total, 1), completed=s.done, width=_BAR)
            table.add_row(stage, bar, f"{s.done}/{s.total} rows", rate(s))
        return Group(table, head, Text("; ".join(filter(None, (extent(self._snapshot), eta(self._snapshot))))))


def _standard_error() -> tuple[TextIO, bool]:
    """Where progress goes, and whether it is ours to close.

    A descriptor of our own: while Ray runs, the process's two lead to a file. A stream without one (in memory, as a
    notebook's) is taken as it is.
    """
    try:
        own = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError):
        return sys.stderr, False
    return os.fdopen(own, "w", buffering=1, encoding=sys.stderr.encoding, errors="replace"), True


def rate(stage: StageProgress) -> str:
    """How fast a stage's worker is; empty where it is not known."""
    if not stage.seconds:
        return ""
    return f"{stage.seconds:.1f} s/row" if stage.seconds >= 1 else f"{1 / stage.seconds:.1f} rows/s"


def extent(snapshot: Snapshot) -> str:
    """Cells of a sweep that are done, and rows that failed; empty where there are none."""
    cells = f"{snapshot.cells[0]} of {snapshot.cells[1]} cells done" if snapshot.cells else ""
    errors = f"{snapshot.errors} rows failed" if snapshot.errors else ""
    return ", ".join(filter(None, (cells, errors)))


def eta(snapshot: Snapshot | RunStatus) -> str:
    """How long it will take; empty where it is not known."""
    if snapshot.eta_s is None:
        return ""
    return f"about {_clock(snapshot.eta_s)} to go" + (", stages not begun left out" if snapshot.at_least else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
