"""The store of results: one immutable Parquet file per stage, fingerprint and shard.

    <root>/<stage>/<fingerprint>/<shard>.parquet      published once, never changed
    <root>/<stage>/<fingerprint>/stage.json           what the fingerprint was made of
    <root>/artefact/<fingerprint>/                    a built defense

Publishing writes a temporary file, fsyncs it and links it to its name: the first writer wins, and a
reader sees a whole file or none. Where the file system has no hard links (some NFS, exFAT), it is renamed:
the last writer wins, whose bytes are the same. A file that was cut short by something else counts as not there and is
replaced. The folder is private (0700): images may be harmful.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UserError
from harness.store.files import write_atomically
from harness.store.leases import lease
from harness.store.schema import VERSION

_STALE_S = 24 * 3600  # age after which a temporary file has certainly lost its writer
_MARKER = "store.json"  # makes a folder a store
_MAGIC = b"PAR1"  # begins and ends a Parquet file
_BLANK = 2**16  # bytes of an image column, from where it cannot be all null
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_COST = {"seconds", "rows", "device"}  # what a note of a shard's cost has


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
        cls.check(root)
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not cls.is_at(root):
                root.chmod(0o700)
                write_atomically(root / _MARKER, json.dumps({"schema": VERSION}).encode())
        except OSError as error:
            raise UserError(f"store {root} cannot be used: {error}") from error
        if not os.access(root, os.W_OK):
            raise UserError(f"store {root} is not writable: name another folder with --store")
        return cls(root)

    @staticmethod
    def check(root: Path) -> None:
        """Refuse a folder that is no store and cannot become one; writes nothing.

        Raises:
            UserError: not a folder, a folder of something else, or written by a newer harness.
        """
        marker, schema = root / _MARKER, VERSION
        try:
            if marker.exists():
                schema = int(json.loads(marker.read_text())["schema"])
            elif root.exists():
                others = [p for p in root.iterdir() if not p.name.startswith(f".{_MARKER}.")]  # such a one is torn
                if others:
                    raise UserError(f"{root} is not a store and not empty: name another folder with --store")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"store {root} cannot be used: {marker} is damaged ({type(error).__name__}: {error}); if the rest is "
                f'whole, write {{"schema": {VERSION}}} into it'
            ) from error
        except OSError as error:
            raise UserError(f"store {root} cannot be used: {error}") from error
        if schema > VERSION:
            raise UserError(
                f"store {root} has schema {schema}, this harness writes {VERSION}: "
                "update the harness, or name another folder with --store"
            )

    def lock(self, writes: Iterable[str] | None = None) -> AbstractContextManager[None]:
        """Hold what is named (``holding``) for one run, or the whole store; nothing stays held where a process died.

        Raises:
            UserError: another run holds some of it.
        """
        return lease(self.root, writes)

    @staticmethod
    def holding(stage: str, fingerprint: str) -> str:
        """What a lease on the shards of a fingerprint is called."""
        return f"{stage}/{fingerprint}"

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether a store lies at ``root``."""
        return (root / _MARKER).is_file()

    @classmethod
    def open_existing(cls, root: Path) -> Store:
        """The store at ``root``, which must be there already.

        Raises:
            UserError: there is none.
        """
        if not cls.is_at(root):
            raise UserError(f"no store at {root}: name one with --store, or make one with `harness eval`")
        return cls.open(root)

    def entries(self) -> list[Entry]:
        """Every stage and fingerprint in the store, with what it takes."""
        entries = []
        for folder in sorted(p for p in self.root.glob("*/*") if p.is_dir()):
            files = [p for p in folder.rglob("*") if p.is_file()]
            shards = sum(p.suffix == ".parquet" and p.parent == folder for p in files)
            size = sum(p.stat().st_size for p in files)
            entries.append(Entry(folder.parent.name, folder.name, shards, size, _what(folder / "stage.json")))
        return entries

    def remove(self, entries: list[Entry]) -> int:
        """Delete whole fingerprints; returns the bytes freed."""
        for entry in entries:
            shutil.rmtree(self.folder(entry.stage, entry.fingerprint))
        return sum(e.size for e in entries)

    def images(self, entries: Iterable[Entry]) -> list[Path]:
        """The shards among ``entries`` that hold images, drawn, edited or given."""
        shards = [p for e in entries for p in sorted(self.folder(e.stage, e.fingerprint).glob("*.parquet"))]
        return [p for p in shards if is_complete(p) and "image" in columns(p)]

    def discard_images(self, shards: Iterable[Path]) -> int:
        """Replace the images of image shards by null (``discarded``), all else kept; returns the bytes freed.

        Scores that are there keep their numbers; a scorer added later needs the images drawn again.
        """
        freed = 0
        for path in shards:
            table, before = read(path), path.stat().st_size
            blank = pa.nulls(table.num_rows, pa.binary())
            table = table.set_column(table.column_names.index("image"), table.schema.field("image"), blank)
            with _written(table, path) as temporary:
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
        """The seconds (without loading), rows, device and host that a shard took; None where they are not known."""
        try:
            cost = json.loads(path.with_suffix(".cost.json").read_text())
        except (OSError, ValueError):
            return None
        return cost if isinstance(cost, dict) and cost.keys() >= _COST else None

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
    with _written(table, path) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno not in _NO_LINKS:
                raise
            if is_complete(path):
                return False
            temporary.replace(path)  # cut short by something else; or no hard links here: the last of equal writers
    return True


def replace(path: Path, table: pa.Table) -> None:
    """Write ``table`` at ``path`` whole or not at all, in place of what was there."""
    with _written(table, path) as temporary:
        temporary.replace(path)
    with contextlib.suppress(OSError):
        temporary.parent.rmdir()  # no store's, and not wanted in a folder that people look into


def is_complete(path: Path) -> bool:
    """Whether a shard is there from its first byte to its last; one that was cut short is as good as none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            footer, end = file.read(4), file.read(4)
    except FileNotFoundError:
        return False
    return end == _MAGIC and int.from_bytes(footer, "little") + 12 <= size


def discarded(path: Path) -> bool:
    """Whether a published image shard has lost its images to ``Store.discard_images``.

    Raises:
        UserError: the file is not what was published.
    """
    with _undamaged(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        place, parts = file.schema_arrow.names.index("image"), range(file.metadata.num_row_groups)
        if sum(file.metadata.row_group(i).column(place).total_uncompressed_size for i in parts) > _BLANK:
            return False
        rows = file.read(columns=["image", "image_sha256"])
    return bool(rows["image"].null_count > rows["image_sha256"].null_count)


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The table of one published shard (no partition columns guessed from its path).

    Raises:
        UserError: the file is not what was published.
    """
    with _undamaged(path):
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns=columns)


def columns(path: Path) -> list[str]:
    """Names of a published shard's columns.

    Raises:
        UserError: the file is not what was published.
    """
    with _undamaged(path):
        names: list[str] = pq.ParquetFile(path).schema_arrow.names
    return names


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the content's
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): remove it and run the same command again; "
            "it is computed anew"
        ) from error


def _what(path: Path) -> str:
    """A few words on a stage's key: its backbone and method, its model, or its scorer."""
    if not path.exists():
        return ""
    key = json.loads(path.read_text())
    method = key.get("method", {})
    layers = method if isinstance(method, list) else [method]
    parts = [
        key.get("variant"),
        key.get("backbone", {}).get("name"),
        *(layer.get("mechanism") for layer in layers),
        key.get("vlm", {}).get("name"),
        key.get("clip", {}).get("source"),
        key.get("scorer"),
    ]
    return " ".join(p for p in parts if p)


@contextmanager
def _written(table: pa.Table, path: Path) -> Iterator[Path]:
    """``table`` in a temporary file beside ``path``, on the disk; gone after the block unless it got another name."""
    folder = path.parent / ".tmp"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        pq.write_table(table, temporary, compression="zstd", write_statistics=False, write_page_checksum=True)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
