"""Which process holds something, told on disk, so that others can see whether it still lives.

A process of this host is looked for by its number and by when it began, since numbers are used again. One of another
host counts as gone when it has not renewed its file for ``EXPIRY_S``, by the file system's own clock, so that clocks of
hosts need not agree.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXPIRY_S = 90.0  # without renewal


@dataclass(frozen=True)
class Holder:
    """A process."""

    host: str
    pid: int
    started: str | None  # boot and ticks at which it began; None where the system does not say

    @classmethod
    def here(cls) -> Holder:
        """This very process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Holder:
        """A process of this host."""
        return cls(socket.gethostname(), pid, _started(pid))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Holder:
        """What ``to_json`` wrote, other keys beside."""
        return cls(data["host"], data["pid"], data.get("started"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_local(self) -> bool:
        """Whether it is of this host."""
        return self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether it was on this host, and has ended."""
        return self.is_local and self.started != _started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(pid: int) -> str | None:
    """When a process of this host began, in the kernel's ticks since it booted; None where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else f"{boot} {numbers[18]}"  # one that nobody has waited for yet has ended too


def file_system_time(folder: Path) -> float:
    """The time by which the file system of ``folder`` stamps files, seconds since 1970."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
