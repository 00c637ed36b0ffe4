"""What a worker is doing, in a small file of its own that the driver reads: loading, or rows and steps done.

Lies in the run's folder, ``activity/<host>-<pid>.json``; no result depends on it, and it may get lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.models import progress

FOLDER = "activity"
_EVERY_S = 0.5  # no more often is the file written


class Activity:
    """Writes what this process is doing."""

    def __init__(self, run: Path) -> None:
        self._path = run / FOLDER / f"{socket.gethostname()}-{os.getpid()}.json"
        self._said: dict[str, Any] = {}
        self._written = 0.0

    @contextmanager
    def shard(self, stage: str, key: str, rows: int) -> Iterator[None]:
        """While the block runs, this process is at work on a shard of ``rows`` rows."""
        self._said = {"stage": stage, "shard": key, "rows": rows, "done": 0, "started": time.time()}
        self._write()
        try:
            with progress.heard_by(self):
                yield
        finally:
            self._said = {}
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While the block runs, the stage's model is being loaded."""
        self._said["loading"] = True
        self._write()
        try:
            yield
        finally:
            self._said.pop("loading", None)
            self._said["started"] = time.time()
            self._write()

    def rows(self, count: int) -> None:
        """Add ``count`` rows to those done."""
        self._said["done"] = min(self._said.get("done", 0) + count, self._said.get("rows", 0))  # some are tried twice
        self._said.pop("steps", None)
        self._soon()

    def steps(self, done: int, total: int) -> None:
        """Set how many of the current micro-batch's steps are done."""
        self._said["steps"] = [done, total]
        self._soon()

    def _soon(self) -> None:
        if time.monotonic() - self._written >= _EVERY_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(self._said))
            part.replace(self._path)


def read(run: Path) -> list[dict[str, Any]]:
    """What each worker of the run last wrote about its work."""
    said = []
    for path in sorted((run / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):  # gone, or no worker's
            entry = json.loads(path.read_text())
            if isinstance(entry, dict) and {"stage", "shard", "rows", "done", "started"} <= entry.keys():
                said.append(entry)
    return said


def clear(run: Path) -> None:
    """Delete the files that workers of an earlier start wrote."""
    for path in (run / FOLDER).glob("*.json"):
        path.unlink(missing_ok=True)
