"""Images that were not drawn here: a folder of files, or a Parquet file with a column of encoded images.

Each becomes a row like a benchmark's, known by the sha256 of its bytes: the same image under another folder's name
is the same row, and is never computed twice.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.cards.backbone import BackboneCard
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest
from harness.store.schema import PROMPT

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SOURCE = pa.schema([("source", pa.string()), ("source_sha256", pa.string())])  # beside PROMPT's columns
SEED = 42
_AT_ONCE = 64  # rows of a Parquet file in memory while it is listed


class ImageFile(NamedTuple):
    """Where an image lies ("PATH", or "PATH#ROW" within a Parquet file), its name, the sha256 of its bytes."""

    source: str
    name: str
    sha256: str
    prompt: str = ""
    seed: int = SEED


def read(path: Path, concept: str, canvas: BackboneCard) -> pa.Table:
    """One row per image, sorted by name: columns of PROMPT and SOURCE.

    Args:
        path: a folder (subfolders too), or a Parquet file with a column ``image`` (encoded bytes, or Hugging Face's
            struct with ``bytes``) and, if so wished, ``row_id`` or ``id``, ``prompt`` and ``seed``.
        concept: what is to be found or removed in them.
        canvas: the backbone whose size and guidance a regeneration is drawn with.

    Raises:
        UserError: no such path, nothing in it, what cannot be read, or a column or a name that cannot be used.
    """
    if path.is_dir():
        list_images = _folder
    elif path.suffix == ".parquet" and path.is_file():
        list_images = _parquet
    else:
        raise UserError(f"--images {show(path)}: give a folder of images or a .parquet file")
    try:
        found = list(list_images(path))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--images {show(path)}: cannot be read: {error}") from error
    if not found:
        raise UserError(f"--images {show(path)}: holds no images ({', '.join(SUFFIXES)})")
    names = [p.name.removesuffix(".png") for p in found]  # as the files are called that --save writes
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"--images {show(path)}: two images are called {twice!r}")
    bench = _bench(path)
    rows: list[dict[str, Any]] = [
        {
            "row_id": f"{bench}/{image.name}", "sample": 0, "bench": bench, "concept": concept,
            "prompt": image.prompt, "seed": image.seed, "guidance": canvas.guidance,
            "width": canvas.width, "height": canvas.height, "excluded": None,
            "source": image.source, "source_sha256": image.sha256,
        }
        for image in sorted(found, key=lambda p: p.name)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([*PROMPT, *SOURCE]))


def load(source: str) -> bytes:
    """The bytes of one image.

    Raises:
        OSError: they cannot be read.
    """
    path, mark, row = source.rpartition("#")
    if mark and path.endswith(".parquet") and row.isdigit():
        return _row(path, int(row))
    return Path(source).read_bytes()


def _row(path: str, row: int) -> bytes:
    """The image of one row of a Parquet file.

    Raises:
        OSError: it cannot be read, or is not there any more.
    """
    changed = Path(path).stat().st_mtime_ns
    try:
        group, within = _place(path, changed, row)
        return _bytes(_group(path, changed, group)[within].as_py())
    except (pa.ArrowException, LookupError) as error:
        raise OSError(f"{path}: row {row}: {error}") from error


def _place(path: str, changed: int, row: int) -> tuple[int, int]:
    """The row group in which a row lies, and its place there.

    Raises:
        LookupError: the file has fewer rows.
    """
    for group, size in enumerate(_group_sizes(path, changed)):
        if row < size:
            return group, row
        row -= size
    raise LookupError("the file has fewer rows")


@functools.lru_cache(maxsize=4)
def _group_sizes(path: str, changed: int) -> list[int]:
    about = pq.read_metadata(path)
    return [about.row_group(i).num_rows for i in range(about.num_row_groups)]


@functools.lru_cache(maxsize=1)  # rows are asked for in their order, and a group may hold gigabytes
def _group(path: str, changed: int, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"])["image"]


def _bench(path: Path) -> str:
    """What the images are called as a set: the folder's or the file's name."""
    return f"images-{path.resolve().name if path.is_dir() else path.resolve().stem}"


def _folder(path: Path) -> Iterator[ImageFile]:
    for file in path.rglob("*"):
        if file.suffix.lower() in SUFFIXES and not file.is_dir():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield ImageFile(str(file.resolve()), file.relative_to(path).as_posix(), digest)


def _parquet(path: Path) -> Iterator[ImageFile]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if "image" not in names:
            raise UserError(f"{show(path)}: no column 'image'{nearest('image', names)} (it has: {', '.join(names)})")
        kind = file.schema_arrow.field("image").type
        if not ((pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) or _is_binary(kind)):
            raise UserError(f"{show(path)}: column 'image' holds {kind}, not encoded images (bytes)")
        key = next((c for c in ("row_id", "id") if c in names), None)
        wanted = [c for c in ("image", key, "prompt", "seed") if c in names]
        batches = file.iter_batches(_AT_ONCE, columns=wanted)
        for i, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            name = str(i) if key is None else str(row[key])
            if not _within(name):
                raise UserError(f"{show(path)}: row {i}: column {key!r}: {name!r} is no name for an image's file")
            prompt, seed = row.get("prompt"), row.get("seed")
            if prompt is not None and not isinstance(prompt, str):
                raise UserError(f"{show(path)}: row {i}: column 'prompt': {prompt!r} is no text")
            if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 64):
                raise UserError(f"{show(path)}: row {i}: column 'seed': {seed!r} is no unsigned 64-bit number")
            digest = hashlib.sha256(_bytes(row["image"])).hexdigest()
            yield ImageFile(f"{path.resolve()}#{i}", name, digest, prompt or "", SEED if seed is None else seed)


def _is_binary(kind: pa.DataType) -> bool:
    return any(same(kind) for same in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _within(name: str) -> bool:
    """Whether a file of this name lies within the folder that it is written to."""
    path = PurePosixPath(name)
    return name.isprintable() and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _bytes(image: Any) -> bytes:
    """Encoded bytes of a cell; an empty or null one is no image and fails when it is decoded."""
    found = image.get("bytes") if isinstance(image, dict) else image
    return found if isinstance(found, bytes) else b""
