"""Whether a file of weights can be whole, as far as its beginning and its length tell: no tensor is read.

A download that broke off, an empty file, a pointer of Git LFS and a web page in a file's place are told in
milliseconds, before anything is planned around them.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from harness.errors import UserError

_LFS = b"version https://git-lfs"
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format
_PARSED = 4_000_000  # bytes of a JSON file that is read whole; of a larger one only its end is looked at
_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_TEXT = (".json", ".txt")


def flaw(path: Path) -> str | None:
    """What is wrong with a file that is there, in a few words ("is cut short"); None where nothing shows.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if not size:
        return "is empty"
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(_LFS):
        return "is a pointer of Git LFS, not the file itself (`git lfs pull`)"
    if path.suffix not in _TEXT and begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page"
    if path.suffix == ".safetensors":
        return _safetensors(path, size)
    if path.suffix == ".json":
        return _json(path, size)
    if path.suffix in _TORCH and begin.startswith(b"PK"):
        return None if zipfile.is_zipfile(path) else "is cut short"
    return None


def require(path: Path, what: str) -> None:
    """Refuse a file that is there and cannot be whole.

    Args:
        path: of the file; one that is not there is somebody else's matter.
        what: names it, as messages begin: "defense esd: weights".

    Raises:
        UserError: what is wrong with it.
    """
    try:
        wrong = flaw(path) if path.is_file() else None
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    if wrong is not None:
        raise UserError(f"{what} {path}: {wrong}")


def _safetensors(path: Path, size: int) -> str | None:
    """Eight bytes of length, a JSON header, and tensors to where it says that the last one ends."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _LARGEST_HEADER:
            return "is no safetensors file"
        header = file.read(length)
    if len(header) < length:
        return "is cut short"
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return "is no safetensors file"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"is cut short ({size} of {whole} bytes)"
    return None if size == whole else f"is no safetensors file ({size - whole} bytes too many)"


def _json(path: Path, size: int) -> str | None:
    if size <= _PARSED:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "is no JSON, or cut short"
        return None
    with path.open("rb") as file:
        file.seek(-64, os.SEEK_END)
        return None if file.read().rstrip().endswith((b"}", b"]")) else "is cut short"
