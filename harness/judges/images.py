"""The images of a finished run, by row, method and variant."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from harness.errors import UserError, nearest
from harness.metrics.clusters import clusters
from harness.store.recorded import image_shards
from harness.store.schema import KEY
from harness.store.shards import columns, read

_READ = ("bench", "concept", "excluded", "error", "image_sha256", "prompt", "prompt_read")
_OPEN_SHARDS = 4  # whose images stay in memory: questions come in the run's order


class Place(NamedTuple):
    """A method and what was done to its images."""

    defense: str
    variant: str

    def __str__(self) -> str:
        return f"{self.defense}/{self.variant}"


class Row(NamedTuple):
    """One prompt drawn once; the same row of every method shows what they make of the same prompt."""

    row_id: str
    sample: int
    bench: str
    concept: str
    cluster: str = ""  # the row_id of the first row that is one observation with it


class StoredImage(NamedTuple):
    """What tells an image from others, the sha256 of its pixels, and where it lies: shard and line."""

    sha256: str
    shard: Path
    line: int

    def png(self) -> bytes:
        """The encoded image.

        Raises:
            UserError: it was removed from the store.
        """
        data: bytes | None = _images(self.shard)[self.line].as_py()
        if data is None:
            raise UserError(f"{self.shard}: its images were removed; remove the shard too and repeat the run")
        return data


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _images(shard: Path) -> pa.ChunkedArray:
    return read(shard, ["image"])["image"]


class StoredImages:
    """A run's images: ``by_row[row][place]``, rows in the run's order; None where there is no image."""

    def __init__(self, by_row: Mapping[Row, Mapping[Place, StoredImage | None]]) -> None:
        self.by_row = by_row
        self.places = list(dict.fromkeys(p for row in by_row.values() for p in row))
        self._by_name = {(row.row_id, row.sample): there for row, there in by_row.items()}

    def rows(self, *places: Place) -> list[Row]:
        """Rows that every one of ``places`` has a line for."""
        return [row for row, there in self.by_row.items() if all(p in there for p in places)]

    def complete(self, *places: Place) -> list[Row]:
        """Rows of which every one of ``places`` has an image."""
        return [row for row in self.rows(*places) if all(self.by_row[row][p] is not None for p in places)]

    def of(self, row: Row, place: Place) -> StoredImage:
        """The image, which must be there."""
        image = self._by_name[row.row_id, row.sample][place]  # whatever cluster the row was read with
        if image is None:
            raise KeyError(f"{row.row_id} has no image under {place}")
        return image


def read_run(record: Mapping[str, Any], store: Path) -> StoredImages:
    """All images that a run's record leads to.

    Args:
        record: run.json.
        store: the store's folder.

    Raises:
        UserError: shards are not in this store, or hold no image.
    """
    tables: dict[Path, pa.Table] = {}
    absent: list[Path] = []
    for path in image_shards(record, store):
        if path.exists():
            tables[path] = _lines(path)
        else:
            absent.append(path)
    if absent:
        raise UserError(
            f"{len(absent)} shards of run {record['run']} are not in store {store}: name its store with --store"
        )
    by_row: dict[Row, dict[Place, StoredImage | None]] = {}
    names = clusters(pa.concat_tables(tables.values(), promote_options="default"))
    for path, table in tables.items():
        _collect(path, table, names, by_row)
    images = StoredImages(by_row)
    if not any(p for row in by_row.values() for p in row.values()):
        raise UserError(f"run {record['run']} has no images in store {store} any more: repeat its command to draw them")
    return images


def _lines(path: Path) -> pa.Table:
    """What a shard of images says of its rows."""
    there = columns(path)
    return read(path, [*KEY, *(name for name in _READ if name in there)])


def _collect(
    path: Path, table: pa.Table, names: Mapping[str, str], by_row: dict[Row, dict[Place, StoredImage | None]]
) -> None:
    for i, line in enumerate(table.to_pylist()):
        row = Row(line["row_id"], line["sample"], line["bench"], line["concept"], names[line["row_id"]])
        usable = line["image_sha256"] is not None and line["excluded"] is None and line["error"] is None
        image = StoredImage(line["image_sha256"], path, i) if usable else None
        by_row.setdefault(row, {})[Place(line["defense"], line["variant"])] = image


def place(text: str, known: Sequence[Place]) -> Place:
    """``"rece/resafe"`` as a place of the run; ``"rece"`` means its own images.

    Raises:
        UserError: the run has no such place.
    """
    defense, _, variant = text.partition("/")
    asked = Place(defense, variant or "base")
    if asked not in known:
        names = [str(p) for p in known]
        raise UserError(f"the run has no images of {text!r}{nearest(str(asked), names)} (it has: {', '.join(names)})")
    return asked


def pairs(known: Sequence[Place]) -> list[tuple[Place, Place]]:
    """What is compared unless said otherwise: each method with what regenerators make of it (Table 9); in a run
    without regenerations, the undefended model with each defense.
    """
    base = [p for p in known if p.variant == "base"]
    made = [(Place(p.defense, "base"), p) for p in known if p.variant != "base" and Place(p.defense, "base") in base]
    undefended = Place("none", "base")
    return made or [(undefended, p) for p in base if p != undefended and undefended in base]
