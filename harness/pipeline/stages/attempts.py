"""Attempts at a shard: marks on disk that outlive a worker, and the search for the rows that fail.

Nothing here changes what is computed, only whether and how often it is tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import RowError, UserError, is_transient

HOPELESS = 3  # rows that failed without one success: perhaps it is not the rows


class DeadlyError(Exception):
    """Workers die whichever row they work on."""


class HopelessError(Exception):
    """Every row tried so far failed."""

    def __str__(self) -> str:
        return f"every row fails, first with {type(self.args[0]).__name__}: {self.args[0]}"


class StoppedError(Exception):
    """The run was stopped during a computation; the finished part of it is kept."""

    def __str__(self) -> str:
        return "the run was stopped"


class Bisection:
    """Call a worker; when it raises, halve the rows until the bad ones are found.

    A row that raises on its own is final, with the error ``<stage>:<exception>``. When several rows
    fail and none succeeds, wherever it is tried, it is not the rows: the first exception goes on.
    """

    probes = 8  # rows all over the shard that are tried before giving up

    def __init__(
        self,
        call: Callable[[pa.Table], pa.Table],
        failed: Callable[[pa.Table, str], pa.Table],
        stage: str,
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self._call, self._failed, self._stage, self._log = call, failed, stage, log
        self._failures: list[Exception] = []
        self._succeeded = False

    def __call__(self, parts: Sequence[pa.Table]) -> list[pa.Table]:
        """The output of each part."""
        try:
            outputs = [self._solve(part) for part in parts]
        except HopelessError:
            if not self._works_somewhere([part.slice(i, 1) for part in parts for i in range(part.num_rows)]):
                raise
            self._failures.clear()
            outputs = [self._solve(part) for part in parts]
        if len(self._failures) > 1 and not self._succeeded:
            raise self._failures[0]
        return outputs

    def _works_somewhere(self, rows: Sequence[pa.Table]) -> bool:
        """Whether any of a few rows succeeds, from the last to the first: bad ones often stand side by side."""
        for row in rows[:: -max(1, len(rows) // self.probes)]:
            try:
                self._call(row)
            except Exception as error:
                if is_transient(error):
                    raise
            else:
                self._succeeded = True
                break
        return self._succeeded

    def _solve(self, rows: pa.Table) -> pa.Table:
        try:
            output = self._call(rows)
        except Exception as error:
            if is_transient(error) or isinstance(error, UserError):
                raise
            if rows.num_rows > 1:
                half = rows.num_rows // 2
                return pa.concat_tables(
                    [self._solve(rows.slice(0, half)), self._solve(rows.slice(half))]
                ).combine_chunks()
            if isinstance(error, RowError):  # known and final, however many rows have it
                return self._failed(rows, error.code)
            self._log({"row": row_name(rows), "traceback": traceback.format_exc()})
            self._failures.append(error)
            if len(self._failures) >= HOPELESS and not self._succeeded:
                raise HopelessError(self._failures[0]) from self._failures[0]
            return self._failed(rows, f"{self._stage}:{type(error).__name__}")
        self._succeeded = True
        return output


def log(run: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to this process's file in the run's folder: what is not deterministic, such as seconds and tracebacks.

    What cannot be noted is no reason to lose what was computed.
    """
    host, folder = socket.gethostname(), run / "log"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{host}-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"host": host, "pid": os.getpid(), "time": time.time(), **entry}) + "\n")


def row_name(row: pa.Table) -> str:
    """A row's name in marks and logs."""
    return f"{row['row_id'][0].as_py()}#{row['sample'][0].as_py()}"


class Marks:
    """Attempts at one shard, one line each, on disk before the attempt begins."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def count(self, row: str | None) -> int:
        """How many attempts at ``row`` (None: the whole shard) never ended."""
        events = self._events(row)
        return events.count("begin") - events.count("end")

    def ended(self, row: str | None) -> bool:
        """Whether an attempt at ``row`` ended, well or not, and left the process alive."""
        return "end" in self._events(row)

    def _events(self, row: str | None) -> list[str]:
        events = []
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            with contextlib.suppress(ValueError):  # a torn line: the disk was full
                entry = json.loads(line)
                if entry["row"] == row:
                    events.append(entry["event"])
        return events

    @contextmanager
    def held(self, row: str | None) -> Iterator[None]:
        """Mark the beginning; mark the end unless the process dies in between."""
        self._append(row, "begin")
        try:
            yield
        finally:
            self._append(row, "end")

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def _append(self, row: str | None, event: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"row": row, "event": event, "pid": os.getpid(), "time": time.time()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
