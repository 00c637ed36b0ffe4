"""Write files whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from harness.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Refuse, before any work, a file or folder that could not be written; leaves nothing behind.

    It tries, since permissions alone do not tell: of ``/proc``, or of a file system that is mounted read-only.

    Args:
        path: what is to be written, with the folders that lead to it.
        option: what named it, as messages begin.
        folder: whether it is a folder for several files.

    Raises:
        UserError: it is a folder where a file is wanted or the other way round, or it cannot be written.
    """
    if not folder and path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file; name a folder")
    made: list[Path] = []
    try:
        target = path if folder else path.parent
        for missing in reversed([p for p in (target, *target.parents) if not p.exists()]):
            missing.mkdir()
            made.append(missing)
        probe = target / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None
    finally:
        for there in reversed(made):
            there.rmdir()
