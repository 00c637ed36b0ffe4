"""Pictures that were not drawn here: a folder of files, or a Parquet file with a column of encoded pictures.

Each becomes a row like a benchmark's, known by the sha256 of its bytes: the same picture under another folder's name
is the same row, and is never computed twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.cardfile import show
from harness.cards import BackboneCard
from harness.errors import UserError, nearest
from harness.schema import PROMPT

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SOURCE = pa.schema([("source", pa.string()), ("source_sha256", pa.string())])  # beside PROMPT's columns
SEED = 42


class Picture(NamedTuple):
    """Where a picture lies ("PATH", or "PATH#ROW" within a Parquet file), its name, the sha256 of its bytes."""

    source: str
    name: str
    sha256: str
    prompt: str = ""
    seed: int = SEED


def read(path: Path, concept: str, canvas: BackboneCard) -> pa.Table:
    """One row per picture, sorted by name: columns of PROMPT and SOURCE.

    Args:
        path: a folder (subfolders too), or a Parquet file with a column ``image`` (encoded bytes, or Hugging Face's
            struct with ``bytes``) and, if so wished, ``row_id`` or ``id``, ``prompt`` and ``seed``.
        concept: what is to be found or removed in them.
        canvas: the backbone whose size and guidance a regeneration is drawn with.

    Raises:
        UserError: no such path, nothing in it, or a column that cannot be used.
    """
    if path.is_dir():
        found = list(_folder(path))
    elif path.suffix == ".parquet" and path.is_file():
        found = list(_parquet(path))
    else:
        raise UserError(f"--images {show(path)}: give a folder of pictures or a .parquet file")
    if not found:
        raise UserError(f"--images {show(path)}: holds no pictures ({', '.join(SUFFIXES)})")
    names = [p.name for p in found]
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"--images {show(path)}: two pictures are called {twice!r}")
    bench = _bench(path)
    rows: list[dict[str, Any]] = [
        {
            "row_id": f"{bench}/{picture.name}", "sample": 0, "bench": bench, "concept": concept,
            "prompt": picture.prompt, "seed": picture.seed, "guidance": canvas.guidance,
            "width": canvas.width, "height": canvas.height, "excluded": None,
            "source": picture.source, "source_sha256": picture.sha256,
        }
        for picture in sorted(found, key=lambda p: p.name)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([*PROMPT, *SOURCE]))


def load(source: str) -> bytes:
    """The bytes of one picture.

    Raises:
        OSError: they cannot be read.
    """
    path, mark, row = source.rpartition("#")
    if mark and path.endswith(".parquet") and row.isdigit():
        return _bytes(pq.read_table(path, columns=["image"])["image"][int(row)].as_py())
    return Path(source).read_bytes()


def _bench(path: Path) -> str:
    """What the pictures are called as a set: the folder's or the file's name."""
    return f"images-{path.resolve().stem}"


def _folder(path: Path) -> Iterator[Picture]:
    for file in path.rglob("*"):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield Picture(str(file.resolve()), file.relative_to(path).as_posix(), digest)


def _parquet(path: Path) -> Iterator[Picture]:
    table = pq.read_table(path)
    if "image" not in table.column_names:
        raise UserError(f"{show(path)}: no column 'image'{nearest('image', table.column_names)} "
                        f"(it has: {', '.join(table.column_names)})")  # fmt: skip
    ids = next((table[c].to_pylist() for c in ("row_id", "id") if c in table.column_names), range(table.num_rows))
    prompts = table["prompt"].to_pylist() if "prompt" in table.column_names else [""] * table.num_rows
    seeds = table["seed"].to_pylist() if "seed" in table.column_names else [SEED] * table.num_rows
    for i, (name, image) in enumerate(zip(ids, table["image"].to_pylist(), strict=True)):
        data = _bytes(image)
        seed = SEED if seeds[i] is None else seeds[i]
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise UserError(f"{show(path)}: row {i}: column 'seed': {seed!r} is no unsigned 64-bit number")
        digest = hashlib.sha256(data).hexdigest()
        yield Picture(f"{path.resolve()}#{i}", str(name), digest, prompts[i] or "", seed)


def _bytes(image: Any) -> bytes:
    """Encoded bytes of a cell; an empty or null one is no picture and fails when it is decoded."""
    found = image.get("bytes") if isinstance(image, dict) else image
    return found if isinstance(found, bytes) else b""
