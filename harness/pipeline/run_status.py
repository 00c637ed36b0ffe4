"""How a run stands, in a small file in its folder: written by the run while it lives, read by anyone at any time.

``runs/<run>/log/status.json`` appears whole, is renewed every few seconds, and says at the end how the run ended. A run
that was killed cannot say so; its file then names a process that has ended, or one of another host that has not renewed
it for long (``harness.store.holder``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.pipeline.outcome import Outcome
from harness.pipeline.progress import Progress, Snapshot, StageProgress
from harness.pipeline.stages.base import STOP
from harness.store.files import write_atomically
from harness.store.holder import EXPIRY_S, Holder, file_system_time

FILE = Path("log") / "status.json"
_EVERY_S = 2.0  # between two writings while something changes
_RENEW_S = 10.0  # where nothing does

WAITING, WORKING, STOPPING = "starting", "working", "stopping"
DONE, INCOMPLETE, FAILED, STOPPED, DEAD = "done", "incomplete", "failed", "stopped", "dead"
AT_WORK = (WAITING, WORKING, STOPPING)


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is, and who holds it."""

    run: str
    command: str
    holder: Holder
    begun: float  # seconds since 1970, by the holder's clock
    updated: float
    state: str = WAITING
    doing: str = ""
    stages: Mapping[str, StageProgress] = field(default_factory=dict)
    cells: tuple[int, int] | None = None  # of a sweep: done, and in all
    errors: int = 0  # rows that failed
    eta_s: float | None = None
    at_least: bool = False  # whether ``eta_s`` leaves out stages that have not begun
    details: tuple[str, ...] = ()  # of what went wrong
    log: str | None = None  # where a run without a terminal writes

    @property
    def rows(self) -> tuple[int, int]:
        """Rows done and rows in all, over all stages."""
        return sum(s.done for s in self.stages.values()), sum(s.total for s in self.stages.values())

    def with_snapshot(self, seen: Snapshot) -> RunStatus:
        """The status that a snapshot of the run makes of this one."""
        return replace(
            self,
            state=WORKING,
            doing=seen.doing or self.doing,
            stages=dict(seen.stages) or self.stages,
            cells=seen.cells or self.cells,
            errors=max(seen.errors, self.errors),
            eta_s=seen.eta_s,
            at_least=seen.at_least,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data; ``from_json`` reads it back."""
        stages = {name: s._asdict() for name, s in self.stages.items()}
        return {**asdict(self), "holder": self.holder.to_json(), "stages": stages}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunStatus:
        """Raises: KeyError, TypeError: it is none."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in data.items() if key in known}
        return cls(
            **kept
            | {
                "holder": Holder.from_json(data["holder"]),
                "stages": {name: StageProgress(**s) for name, s in data["stages"].items()},
                "cells": tuple(data["cells"]) if data["cells"] else None,
                "details": tuple(data["details"]),
            }
        )


class Keeper:
    """Writes a run's status while a block runs."""

    def __init__(self, run: Path, status: RunStatus) -> None:
        self._path, self._status = run / FILE, status
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._written = self._changed = 0.0

    def heard(self, progress: Progress) -> Progress:
        """``progress``, of which this keeper hears too."""

        def both(seen: Snapshot) -> None:
            with self._lock:
                self._status = self._status.with_snapshot(seen)
                self._changed = time.monotonic()
            progress(seen)

        return both

    def finished(self, outcome: Outcome | None, errors: int, complete: bool) -> None:
        """Say how the run ended; ``outcome`` is None where nothing was left to compute."""
        statuses = outcome.statuses if outcome is not None else {}
        ended = next((state for status, state in _ENDS if statuses.get(status)), INCOMPLETE)
        details = tuple(outcome.details[:5]) if outcome is not None else ()
        with self._lock:
            self._status = replace(
                self._status, state=DONE if complete else ended, errors=errors, details=details, doing="", eta_s=None
            )

    def write(self) -> None:
        """Write the file now. What cannot be noted is no reason to end a run."""
        with self._lock:
            self._written = time.monotonic()
            self._status = replace(self._status, updated=time.time())
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps(self._status.to_json()).encode())

    def watch(self) -> None:
        """Write whenever something has changed, and now and then where nothing has, until the block is over."""
        while not self._ended.wait(_EVERY_S):
            if self._changed > self._written or time.monotonic() - self._written >= _RENEW_S:
                self.write()

    def end(self, error: BaseException | None) -> None:
        """Write for the last time; ``error`` is what ended the block, if anything did."""
        self._ended.set()
        if error is not None:
            state = STOPPED if isinstance(error, KeyboardInterrupt | SystemExit) else FAILED
            told = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            self._status = replace(self._status, state=state, details=(told,), doing="", eta_s=None)
        self.write()


_ENDS = (("stopped", STOPPED), ("failed", FAILED), ("lost", FAILED))  # the status of a ticket, and what it makes a run


@contextmanager
def kept(run: Path, command: str) -> Iterator[Keeper]:
    """Keep the status of the run in the folder ``run``, which is there, while the block runs."""
    before = _read(run)
    here = Holder.here()
    log = before.log if before is not None and before.holder == here else None  # said by who started this process
    now = time.time()
    keeper = Keeper(run, RunStatus(run=run.name, command=command, holder=here, begun=now, updated=now, log=log))
    keeper.write()
    thread = threading.Thread(target=keeper.watch, daemon=True)
    thread.start()
    ended: BaseException | None = None
    try:
        yield keeper
    except BaseException as error:
        ended = error
        raise
    finally:
        keeper.end(ended)
        thread.join()


def announce(run: Path, status: RunStatus) -> None:
    """Write the status of a run that another process is about to take up."""
    Keeper(run, status).write()


def read(run: Path) -> RunStatus | None:
    """How the run in a folder stands, by what is on disk alone; None where nothing is known of it."""
    status = _read(run)
    if status is None or status.state not in AT_WORK:
        return status
    if is_gone(run, status):
        return replace(status, state=DEAD, doing="", eta_s=None)
    return replace(status, state=STOPPING) if (run / STOP).exists() else status


def is_gone(run: Path, status: RunStatus) -> bool:
    """Whether who holds the run has ended, or has not been heard of for too long from another host."""
    if status.holder.is_local:
        return status.holder.is_gone
    return silence_s(run) > EXPIRY_S


def silence_s(run: Path) -> float:
    """Seconds since the run's status was written, by the file system's clock."""
    path = run / FILE
    try:
        return max(file_system_time(path.parent) - path.stat().st_mtime, 0.0)
    except OSError:  # a folder that may only be read: this host's clock will do
        return max(time.time() - path.stat().st_mtime, 0.0)


def _read(run: Path) -> RunStatus | None:
    try:
        return RunStatus.from_json(json.loads((run / FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def runs(out: Path) -> list[Path]:
    """The folders under ``out`` that hold a status, the latest last."""
    there = [p for p in out.iterdir() if (p / FILE).is_file()] if out.is_dir() else []
    return sorted(there, key=lambda p: (p / FILE).stat().st_mtime)


def resolve(name: str, out: Path) -> Path:
    """The folder of the run that ``name`` means: a folder, a name under ``out``, or how one name alone begins.

    Raises:
        UserError: there is none, or several begin so.
    """
    for path in (Path(name), out / name):
        if (path / FILE).is_file():
            return path
    known = [p.name for p in runs(out)]
    starting = [n for n in known if n.startswith(name)]
    if len(starting) == 1:
        return out / starting[0]
    if starting:
        raise UserError(f"{len(starting)} runs begin with {name!r}: {', '.join(starting[:5])}; name one")
    told = ", ".join(known[-5:]) or "none"
    raise UserError(f"no run {name!r} in {out}{nearest(name, known)} (the latest there: {told}; or say --out)")


def mark_stopped(run: Path, status: RunStatus) -> RunStatus:
    """Say of a run whose process was ended by ``stop`` before it could say so itself."""
    marked = replace(status, state=STOPPED)
    announce(run, marked)
    return marked


def stop(run: Path, at_once: bool = False) -> RunStatus | None:
    """Ask a run to end: what is being computed finishes its stage and is published, nothing else begins.

    Args:
        run: its folder.
        at_once: send SIGTERM too, which gives it a grace period (``harness.pipeline.interrupt``).

    Returns:
        Its status before; nothing is asked of a run that is not at work.

    Raises:
        UserError: nothing but a signal can reach it, and it is on another host.
    """
    status = read(run)
    if status is None or status.state not in AT_WORK:
        return status
    early = status.state == WAITING or not status.stages  # it has not begun, and would remove the stop file
    if (early or at_once) and not status.holder.is_local:
        raise UserError(f"{run.name} is held by {status.holder}: send it SIGTERM there (kill {status.holder.pid})")
    if early or at_once:
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.holder.pid, signal.SIGTERM)
    else:
        (run / STOP).touch()
    return status
