"""Where results lie: one immutable Parquet file per stage, fingerprint and shard.

    <root>/<stage>/<fingerprint>/<shard>.parquet      published once, never changed
    <root>/<stage>/<fingerprint>/stage.json           what the fingerprint was made of
    <root>/artefact/<fingerprint>/                    a built defense

Publishing writes a temporary file, fsyncs it and links it to its name: the first writer wins, and a
reader sees a whole file or none. The folder is private (0700): images may be harmful.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UserError
from harness.schema import VERSION

_STALE_S = 24 * 3600  # age after which a temporary file has certainly lost its writer


class Entry(NamedTuple):
    """One fingerprint of one stage: number of shards, bytes, and what it is in a few words."""

    stage: str
    fingerprint: str
    shards: int
    size: int
    what: str


@dataclass(frozen=True)
class Store:
    """A folder of published shards. Cheap to make and to pickle; ``open`` checks it first."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Store:
        """Create or check the store at ``root``.

        Raises:
            UserError: not writable, not a folder, or written by a newer harness.
        """
        marker = root / "store.json"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if marker.exists():
                schema = json.loads(marker.read_text())["schema"]
            else:
                schema = VERSION
                if any(root.iterdir()):
                    raise UserError(f"{root} is not a store and not empty: name another folder with --store")
                root.chmod(0o700)
                write_atomically(marker, json.dumps({"schema": VERSION}).encode())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"store {root} cannot be used: {error}") from error
        if schema > VERSION:
            raise UserError(
                f"store {root} has schema {schema}, this harness writes {VERSION}: "
                "update the harness, or name another folder with --store"
            )
        if not os.access(root, os.W_OK):
            raise UserError(f"store {root} is not writable: name another folder with --store")
        return cls(root)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one run; released by the system even if the process is killed.

        Raises:
            UserError: another run holds it.
        """
        path = self.root / ".lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UserError(
                    f"store {self.root} is in use by another run ({holder}): wait for it, or name another with --store"
                ) from None
            file.truncate(0)
            file.write(f"{socket.gethostname()}, process {os.getpid()}")
            file.flush()
            yield

    @classmethod
    def open_existing(cls, root: Path) -> Store:
        """The store at ``root``, which must be there already.

        Raises:
            UserError: there is none.
        """
        if not (root / "store.json").exists():
            raise UserError(f"no store at {root}: name one with --store, or make one with `harness eval`")
        return cls.open(root)

    def entries(self) -> list[Entry]:
        """Every stage and fingerprint in the store, with what it takes."""
        found = []
        for folder in sorted(p for p in self.root.glob("*/*") if p.is_dir()):
            files = [p for p in folder.rglob("*") if p.is_file()]
            shards = sum(p.suffix == ".parquet" and p.parent == folder for p in files)
            size = sum(p.stat().st_size for p in files)
            found.append(Entry(folder.parent.name, folder.name, shards, size, _what(folder / "stage.json")))
        return found

    def remove(self, entries: list[Entry]) -> int:
        """Delete whole fingerprints; returns the bytes freed."""
        for entry in entries:
            shutil.rmtree(self.folder(entry.stage, entry.fingerprint))
        return sum(e.size for e in entries)

    def discard_images(self, shards: Iterable[Path]) -> int:
        """Replace the pictures of image shards by null, everything else kept; returns the bytes freed.

        Scores that are there keep their numbers; a scorer added later needs the pictures drawn again.
        """
        freed = 0
        for path in shards:
            table, before = read(path), path.stat().st_size
            blank = pa.nulls(table.num_rows, pa.binary())
            table = table.set_column(table.column_names.index("image"), table.schema.field("image"), blank)
            temporary = _temporary(path)
            pq.write_table(table, temporary, compression="zstd", write_statistics=False)
            temporary.replace(path)
            freed += before - path.stat().st_size
        return freed

    def folder(self, stage: str, fingerprint: str) -> Path:
        return self.root / stage / fingerprint

    def path(self, stage: str, fingerprint: str, shard: str) -> Path:
        """Where the shard with this key lies once it is published."""
        return self.folder(stage, fingerprint) / f"{shard}.parquet"

    def describe(self, stage: str, fingerprint: str, key: Mapping[str, Any]) -> None:
        """Keep what ``fingerprint`` was made of beside its shards, for ``harness diff``."""
        path = self.folder(stage, fingerprint) / "stage.json"
        if not path.exists():
            write_atomically(path, json.dumps(key, indent=1, sort_keys=True).encode())

    @staticmethod
    def note_cost(path: Path, seconds: float, rows: int, device: str) -> None:
        """Keep beside a shard what it took; not part of any result, and no matter if it gets lost."""
        cost = {"seconds": round(seconds, 3), "rows": rows, "device": device, "host": socket.gethostname()}
        with contextlib.suppress(OSError):
            path.with_suffix(".cost.json").write_text(json.dumps(cost))

    @staticmethod
    def cost(path: Path) -> dict[str, Any] | None:
        """What a shard took: seconds (loading left out), rows, device, host; None where it is not known."""
        try:
            found: dict[str, Any] = json.loads(path.with_suffix(".cost.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def sweep(self) -> int:
        """Delete temporary files whose writer is long gone; returns how many."""
        stale = [p for p in self.root.glob("*/*/.tmp/*") if time.time() - p.stat().st_mtime > _STALE_S]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def publish(path: Path, table: pa.Table) -> bool:
    """Write ``table`` at ``path`` unless somebody already has; True if this call did.

    The bytes depend on the table only, so that two runs' files can be compared.
    """
    temporary = _temporary(path)
    pq.write_table(table, temporary, compression="zstd", write_statistics=False)
    return _settle(temporary, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The table of one published shard (no partition columns guessed from its path)."""
    return pq.ParquetFile(path).read(columns=columns)


def columns(path: Path) -> list[str]:
    """Names of a published shard's columns."""
    names: list[str] = pq.ParquetFile(path).schema_arrow.names
    return names


def _what(path: Path) -> str:
    """A few words on a stage's key: its backbone and method, its model, or its scorer."""
    if not path.exists():
        return ""
    key = json.loads(path.read_text())
    parts = [
        key.get("variant"),
        key.get("backbone", {}).get("name"),
        key.get("method", {}).get("mechanism"),
        key.get("vlm", {}).get("name"),
        key.get("clip", {}).get("source"),
        key.get("scorer"),
    ]
    return " ".join(p for p in parts if p)


def _temporary(path: Path) -> Path:
    folder = path.parent / ".tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"


def _settle(temporary: Path, path: Path) -> bool:
    descriptor = os.open(temporary, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
