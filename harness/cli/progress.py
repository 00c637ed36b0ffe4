"""Progress on long work: bars in a terminal, a line every ten seconds elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 10.0


class Display:
    """Call it with {stage: (shards done, shards in all)}; it draws what changed."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line, self._last_text, self._started = 0.0, "", time.monotonic()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stages: dict[str, tuple[int, int]]) -> None:
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._bars(stages)
        else:
            self._line(stages)

    def _bars(self, stages: dict[str, tuple[int, int]]) -> None:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:>26}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
            self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
            self._progress.start()
        for stage, (done, total) in stages.items():
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, total=total)
            self._progress.update(self._tasks[stage], completed=done)

    def _line(self, stages: dict[str, tuple[int, int]]) -> None:
        text = ", ".join(f"{stage} {done}/{total}" for stage, (done, total) in stages.items())
        now = time.monotonic()
        finished = all(done == total for done, total in stages.values())
        if text != self._last_text and (finished or now - self._last_line > _LINE_EVERY_S):
            print(f"[{now - self._started:4.0f} s] shards: {text}", file=sys.stderr, flush=True)
            self._last_line, self._last_text = now, text
