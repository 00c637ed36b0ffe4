"""The pictures of a finished run, by row, method and variant."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from harness.errors import UserError, nearest
from harness.schema import KEY
from harness.store import read

_READ = ("bench", "concept", "excluded", "error", "image_sha256")
_OPEN_SHARDS = 4  # whose pictures stay in memory: questions come in the run's order


class Place(NamedTuple):
    """A method and what was done to its pictures."""

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


class Picture(NamedTuple):
    """What tells a picture from others, the sha256 of its pixels, and where it lies: shard and line."""

    sha256: str
    shard: Path
    line: int

    def png(self) -> bytes:
        """The encoded picture.

        Raises:
            UserError: it was removed from the store.
        """
        data: bytes | None = _images(self.shard)[self.line].as_py()
        if data is None:
            raise UserError(f"{self.shard}: its pictures were removed; remove the shard too and repeat the run")
        return data


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _images(shard: Path) -> pa.ChunkedArray:
    return read(shard, ["image"])["image"]


class Pictures:
    """A run's pictures: ``found[row][place]``, rows in the run's order; None where there is no picture."""

    def __init__(self, found: Mapping[Row, Mapping[Place, Picture | None]]) -> None:
        self.found = found
        self.places = list(dict.fromkeys(p for row in found.values() for p in row))

    def rows(self, *places: Place) -> list[Row]:
        """Rows that every one of ``places`` has a line for."""
        return [row for row, there in self.found.items() if all(p in there for p in places)]

    def complete(self, *places: Place) -> list[Row]:
        """Rows of which every one of ``places`` has a picture."""
        return [row for row in self.rows(*places) if all(self.found[row][p] is not None for p in places)]

    def of(self, row: Row, place: Place) -> Picture:
        """The picture, which must be there."""
        picture = self.found[row][place]
        if picture is None:
            raise KeyError(f"{row.row_id} has no picture under {place}")
        return picture


def read_run(record: Mapping[str, Any], store: Path) -> Pictures:
    """All pictures that a run's record leads to.

    Args:
        record: run.json.
        store: the store's folder.

    Raises:
        UserError: shards are not in this store, or hold no picture.
    """
    found: dict[Row, dict[Place, Picture | None]] = {}
    absent: list[Path] = []
    for chain in record["chains"]:
        for stage, fingerprint in _outputs(chain):
            for shard in chain["shards"]:
                path = store / stage / fingerprint / f"{shard}.parquet"
                if path.exists():
                    _collect(path, found)
                else:
                    absent.append(path)
    if absent:
        raise UserError(
            f"{len(absent)} shards of run {record['run']} are not in store {store}: name its store with --store"
        )
    pictures = Pictures(found)
    if not any(p for row in found.values() for p in row.values()):
        raise UserError(
            f"run {record['run']} has no pictures in store {store} any more: repeat its command to draw them"
        )
    return pictures


def _outputs(chain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(stage, fingerprint) of every stage of a chain that publishes pictures."""
    if "variants" in chain:
        yield from ((stage, fingerprint) for stage, fingerprint in (v["images"] for v in chain["variants"]))
    else:  # a record of an earlier release
        yield chain["stages"][0]["stage"], chain["stages"][0]["fingerprint"]


def _collect(path: Path, found: dict[Row, dict[Place, Picture | None]]) -> None:
    for i, line in enumerate(read(path, [*KEY, *_READ]).to_pylist()):
        row = Row(line["row_id"], line["sample"], line["bench"], line["concept"])
        usable = line["image_sha256"] is not None and line["excluded"] is None and line["error"] is None
        picture = Picture(line["image_sha256"], path, i) if usable else None
        found.setdefault(row, {})[Place(line["defense"], line["variant"])] = picture


def place(text: str, known: Sequence[Place]) -> Place:
    """``"rece/resafe"`` as a place of the run; ``"rece"`` means its own pictures.

    Raises:
        UserError: the run has no such place.
    """
    defense, _, variant = text.partition("/")
    asked = Place(defense, variant or "base")
    if asked not in known:
        names = [str(p) for p in known]
        raise UserError(f"the run has no pictures of {text!r}{nearest(str(asked), names)} (it has: {', '.join(names)})")
    return asked


def pairs(known: Sequence[Place]) -> list[tuple[Place, Place]]:
    """What is compared unless said otherwise: each method with what regenerators make of it (Table 9); in a run
    without regenerations, the undefended model with each defense.
    """
    base = [p for p in known if p.variant == "base"]
    made = [(Place(p.defense, "base"), p) for p in known if p.variant != "base" and Place(p.defense, "base") in base]
    undefended = Place("none", "base")
    return made or [(undefended, p) for p in base if p != undefended and undefended in base]
