"""What a result depends on, as one short hash; and which part of it changed.

A stage's *key* is a JSON-able mapping of everything its output depends on: card values, weights'
identity, dtype, micro-batch, a digest of its own code, the versions of the libraries that matter,
and the fingerprints upstream. Its fingerprint is the hash of the key. Nothing here imports a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LENGTH = 16  # hex digits kept of the sha256: 64 bits


def digest(value: Any) -> str:
    """Short hash of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def code(modules: Iterable[str]) -> str:
    """Hash of the source text of ``modules`` (dotted names; a package means its ``__init__``).

    The sources are read, not imported, so that a finished run can be recognised without torch.
    """
    found = hashlib.sha256()
    for name in sorted(set(modules)):
        found.update(name.encode() + b"\0" + _source(name).read_bytes() + b"\0")
    return found.hexdigest()[:LENGTH]


@cache
def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {module!r} to take the digest of")
    return Path(spec.origin)


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution; None where it is not installed."""
    return {name: _version(name) for name in sorted(set(distributions))}


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class FileHashes:
    """sha256 of files, remembered by path, size and modification time in one JSON file."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        if memory is not None and memory.exists():
            with contextlib.suppress(OSError, ValueError):  # only a cache: what cannot be read is begun anew
                found = json.loads(memory.read_text())
                self._known = found if isinstance(found, dict) else {}

    def of(self, path: Path) -> str:
        """sha256 (hex) of the file at ``path``."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256_of(path)
            self._save()
        return self._known[key]

    def of_folder(self, folder: Path) -> dict[str, str]:
        """sha256 of every file below ``folder``, by its path relative to it."""
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        return {p.relative_to(folder).as_posix(): self.of(p) for p in files}

    def _save(self) -> None:
        if self._memory is None:
            return
        part = self._memory.with_name(f"{self._memory.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):  # a store that cannot be written is somebody else's complaint
            part.write_text(json.dumps(self._known))
            part.replace(self._memory)


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, left value, right value) for every leaf in which two keys differ."""
    rows: list[tuple[str, Any, Any]] = []
    for name in sorted({*left, *right}):
        a, b = left.get(name), right.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += difference(a, b, f"{prefix}{name}.")
        elif a != b:
            rows.append((f"{prefix}{name}", a, b))
    return rows
