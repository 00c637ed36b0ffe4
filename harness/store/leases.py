"""Leases: who is writing what in a store. They expire, so that a host that died blocks nobody for long.

A lease is a small file in ``<root>/.leases``, renewed while its run lives. It names what the run writes (folders of
fingerprints, the run's own folder), or everything. Two runs may share a store where they write nothing in common.
Shards are published whole and once whatever happens, so that a lease only saves work from being done twice, and keeps
images from being removed under a run.

Time is the file system's own: the age of a lease is measured against a file written just now beside it, so that clocks
of hosts need not agree.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import UserError
from harness.store.files import write_atomically
from harness.store.holder import EXPIRY_S, Holder, file_system_time

FOLDER = ".leases"
EVERYTHING = "*"
_RENEW_S = 20.0
_DOOR_S = 30.0  # for others to look and write theirs


@contextmanager
def lease(root: Path, writes: Iterable[str] | None, renew_s: float = _RENEW_S) -> Iterator[None]:
    """Hold a lease on the named parts of the store at ``root`` while the block runs.

    Args:
        root: the store's folder.
        writes: names of what will be written; None: everything.
        renew_s: seconds between renewals.

    Raises:
        UserError: another run has a lease on some of it.
    """
    names = sorted(set(writes)) if writes is not None else [EVERYTHING]
    path = root / FOLDER / f"{uuid.uuid4().hex}.json"
    with _door(root):
        _refuse(root, set(names))
        _write(path, names)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, names, renew_s, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


@contextmanager
def _door(root: Path) -> Iterator[None]:
    """One at a time looks and writes its lease; where the file system has no locks, two may meet and work twice."""
    (root / FOLDER).mkdir(mode=0o700, exist_ok=True)
    door = FileLock(root / FOLDER / "door", timeout=_DOOR_S)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(door)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, Timeout):
                raise UserError(f"store {root}: {door.lock_file} is locked by another process") from None
        yield


def _refuse(root: Path, names: set[str]) -> None:
    """Refuse what others hold; remove what nobody holds any more."""
    now = file_system_time(root / FOLDER)
    for path in (root / FOLDER).glob("*.json"):
        try:
            held, age = json.loads(path.read_text()), now - path.stat().st_mtime
        except (OSError, ValueError):  # gone meanwhile; or cut short, which no writer of ours leaves
            continue
        if age > EXPIRY_S or Holder.from_json(held).is_gone:
            path.unlink(missing_ok=True)
            continue
        theirs = set(held["writes"])
        shared = names & theirs if EVERYTHING not in names | theirs else names | theirs
        if shared:
            what = "all of it" if EVERYTHING in theirs else ", ".join(sorted(shared - {EVERYTHING})[:3])
            raise UserError(
                f"store {root} is in use by another run ({held['host']}, process {held['pid']}; it writes {what}): "
                "wait for it, or name another with --store"
            )


def _write(path: Path, names: list[str]) -> None:
    content = {**Holder.here().to_json(), "writes": names}
    write_atomically(path, json.dumps(content).encode())


def _renew(path: Path, names: list[str], every_s: float, done: threading.Event) -> None:
    while not done.wait(every_s):
        with contextlib.suppress(OSError):  # the next time, perhaps
            _write(path, names)
