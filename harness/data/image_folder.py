"""Images that were not drawn here: a folder of files, or a Parquet file with a column of encoded images.

Each becomes a row like a benchmark's, known by the sha256 of its bytes: the same image under another folder's name
is the same row, and is never computed twice. What is no image of the user's is left out, and counted by reason.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq

from harness.cards.backbone import BackboneCard
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest
from harness.store.schema import PROMPT

HIDDEN = "hidden or system file"  # .*, ._*, __MACOSX, notebook checkpoints, thumbnails
NO_IMAGE = "no image"
UNREAD = "format that cannot be read whole"
SEEN = "folder linked twice"
_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_EXTERNAL = frozenset({"EPS", "WMF", "MPEG"})  # that Pillow names, and reads by another program or not at all
_ESCAPED = "bytes:"  # begins the source of a file whose path is not UTF-8, percent-encoded
SOURCE = pa.schema([("source", pa.string()), ("source_sha256", pa.string())])  # beside PROMPT's columns
SEED = 42
_AT_ONCE = 64  # rows of a Parquet file in memory while it is listed


class ImageFile(NamedTuple):
    """Where an image lies ("PATH", or "PATH#ROW" within a Parquet file), its name, the sha256 of its bytes."""

    source: str
    name: str
    sha256: str
    opens: bool  # as an image, by its header; one that does not fails by itself where others do
    prompt: str = ""
    seed: int = SEED


class Imported(NamedTuple):
    """Images as rows, and how many files are none, by reason."""

    rows: pa.Table
    left_out: dict[str, int]


def read(path: Path, concept: str, canvas: BackboneCard) -> Imported:
    """One row per image, sorted by name: columns of PROMPT and SOURCE.

    In a folder an image is every file, in linked folders too, that Pillow reads whole, by its content or its suffix.

    Args:
        path: a folder (subfolders too), or a Parquet file with a column ``image`` (encoded bytes, paths relative to the
            Parquet file, or Hugging Face's struct with ``bytes`` or ``path``) and, if so wished, ``row_id`` or ``id``,
            ``prompt`` and ``seed``.
        concept: what is to be found or removed in them.
        canvas: the backbone whose size and guidance a regeneration is drawn with.

    Raises:
        UserError: no such path, no image in it, what cannot be read, or a column or a name that cannot be used.
    """
    if path.is_dir():
        list_images = _folder
    elif path.suffix == ".parquet" and path.is_file():
        list_images = _parquet
    else:
        raise UserError(f"--images {show(path)}: give a folder of images or a .parquet file")
    left_out: Counter[str] = Counter()
    try:
        sources = list(list_images(path, left_out))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--images {show(path)}: cannot be read: {error}") from error
    if not sources:
        raise UserError(f"--images {show(path)}: holds no images{_left_out_text(left_out)}")
    names = [p.name.removesuffix(".png") for p in sources]  # as the files are called that --save writes
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"--images {show(path)}: two images are called {twice!r}")
    if not any(image.opens for image in sources):
        raise UserError(
            f"--images {show(path)}: holds no image that can be read: {len(sources)} tried, the first "
            f"{_text(sources[0].source)}{_left_out_text(left_out)}"
        )
    bench = _bench(path)
    rows: list[dict[str, Any]] = [
        {
            "row_id": f"{bench}/{image.name}", "sample": 0, "bench": bench, "concept": concept,
            "prompt": image.prompt, "seed": image.seed, "guidance": canvas.guidance,
            "width": canvas.width, "height": canvas.height, "excluded": None,
            "source": image.source, "source_sha256": image.sha256,
        }
        for image in sorted(sources, key=lambda p: p.name)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=pa.schema([*PROMPT, *SOURCE]))
    return Imported(table, dict(left_out.most_common()))


def _left_out_text(left_out: Counter[str]) -> str:
    return f" (left out: {', '.join(f'{reason} {n}' for reason, n in sorted(left_out.items()))})" if left_out else ""


def original_name(name: str, source: str) -> str:
    """The name of a file as its own file system has it, from its name in a row, where bad bytes are escaped.

    Args:
        name: of a row, as ``read`` makes it.
        source: of the same row.
    """
    if not source.startswith(_ESCAPED):
        return name
    return os.fsdecode(re.sub(rb"\\x([89a-f][0-9a-f])", lambda byte: bytes.fromhex(byte[1].decode()), name.encode()))


def load(source: str) -> bytes:
    """The bytes of one image.

    Raises:
        OSError: they cannot be read.
    """
    path, mark, row = source.rpartition("#")
    if mark and path.endswith(".parquet") and row.isdigit():
        return _row(path, int(row))
    if source.startswith(_ESCAPED):
        return Path(os.fsdecode(unquote_to_bytes(source.removeprefix(_ESCAPED)))).read_bytes()
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
    return f"images-{_text(path.resolve().name if path.is_dir() else path.resolve().stem)}"


def _folder(path: Path, left_out: Counter[str]) -> Iterator[ImageFile]:
    for file in _files(path, left_out):
        relative = file.relative_to(path)
        if any(part.startswith(".") or part.casefold() in _SYSTEM for part in relative.parts):
            left_out[HIDDEN] += 1
            continue
        known = _formats().get(file.suffix.lower())
        if not file.is_file() and not (known and file.is_symlink()):  # a link to nothing is an image that is missing
            left_out[NO_IMAGE] += 1
            continue
        data = _there(file)
        kind = known or _identified(data)
        if kind is None or kind not in _whole():
            left_out[NO_IMAGE if kind is None else UNREAD] += 1
            continue
        yield ImageFile(_source(file), _text(relative.as_posix()), hashlib.sha256(data).hexdigest(), _opens(data))


def _files(path: Path, left_out: Counter[str]) -> Iterator[Path]:
    """All files of a folder and of those in it; linked ones after the others, each real folder once."""
    folders: list[Path] = [path]
    linked: list[Path] = []
    seen: set[Path] = set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        real = folder.resolve()
        if real in seen:
            left_out[SEEN] += 1
            continue
        seen.add(real)
        for entry in sorted(folder.iterdir(), reverse=True):
            if not entry.is_dir():
                yield entry
            elif entry.is_symlink():
                linked.append(entry)
            else:
                folders.append(entry)


@functools.lru_cache(maxsize=1)
def _formats() -> dict[str, str]:
    """Pillow's formats by suffix, of those that it opens."""
    from PIL import Image

    kinds = Image.registered_extensions()  # loads all formats
    return {suffix: kind for suffix, kind in kinds.items() if kind in Image.OPEN}


@functools.lru_cache(maxsize=1)
def _whole() -> frozenset[str]:
    """Formats that Pillow reads by itself, pixels and all."""
    from PIL import Image, ImageFile

    _formats()
    stubs = {
        k for k, (make, _) in Image.OPEN.items() if isinstance(make, type) and issubclass(make, ImageFile.StubImageFile)
    }
    return frozenset(Image.OPEN) - stubs - _EXTERNAL


def _identified(data: bytes) -> str | None:
    """The format that a file begins as, of those that are told by their first bytes."""
    from PIL import Image

    _formats()
    for kind, (_, accept) in Image.OPEN.items():
        try:
            if accept is not None and data and accept(data[:16]) is True:
                with Image.open(io.BytesIO(data), formats=[kind]) as image:
                    return image.format
        except Exception:  # a broken or a short file makes decoders raise almost anything
            continue
    return None


def _source(file: Path) -> str:
    """Where a file lies, as text that leads back to it."""
    path = os.fsencode(file.parent.resolve() / file.name)
    try:
        return path.decode()
    except UnicodeDecodeError:
        return _ESCAPED + quote_from_bytes(path)


def _opens(data: bytes) -> bool:
    """Whether a file begins as an image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)):
            return True
    except Exception:  # a broken file makes decoders raise almost anything
        return False


def _text(text: str) -> str:
    """A file's name or path as text, with bytes that are no UTF-8 escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _parquet(path: Path, left_out: Counter[str]) -> Iterator[ImageFile]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if "image" not in names:
            raise UserError(f"{show(path)}: no column 'image'{nearest('image', names)} (it has: {', '.join(names)})")
        kind = file.schema_arrow.field("image").type
        if not (_is_binary(kind) or _is_text(kind) or (pa.types.is_struct(kind) and _has_image(kind))):
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
            elsewhere = _path(row["image"], path)
            data = _bytes(row["image"]) if elsewhere is None else _there(elsewhere)
            source = f"{path.resolve()}#{i}" if elsewhere is None else _source(elsewhere)
            digest = hashlib.sha256(data).hexdigest()
            yield ImageFile(source, name, digest, _opens(data), prompt or "", SEED if seed is None else seed)


def _has_image(kind: pa.StructType) -> bool:
    return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))


def _is_text(kind: pa.DataType) -> bool:
    return any(same(kind) for same in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _path(image: Any, parquet: Path) -> Path | None:
    """The file that a cell names instead of holding an image; a relative path begins beside the Parquet file."""
    named = image.get("path") if isinstance(image, dict) else image
    held = isinstance(image, dict) and image.get("bytes")
    return parquet.resolve().parent / named if isinstance(named, str) and named and not held else None


def _there(file: Path) -> bytes:
    """A named file's bytes; of one that is not there none, and its row fails when it is read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _is_binary(kind: pa.DataType) -> bool:
    return any(same(kind) for same in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _within(name: str) -> bool:
    """Whether a file of this name lies within the folder that it is written to."""
    path = PurePosixPath(name)
    return name.isprintable() and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _bytes(image: Any) -> bytes:
    """Encoded bytes of a cell; an empty or null one is no image and fails when it is decoded."""
    data = image.get("bytes") if isinstance(image, dict) else image
    return data if isinstance(data, bytes) else b""
