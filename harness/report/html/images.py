"""The images of a page: those of the shapes world as they are, all others only under a strong blur.

What lies in the file of another image is its blur, 32 pixels a side: nothing in the page can bring the image back.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageOps

from harness.metrics.cells import Policies, ResultGroup
from harness.metrics.policies import verdicts
from harness.report.contact_sheet import blurred, may_show
from harness.store.files import write_atomically
from harness.store.schema import KEY
from harness.store.shards import read

MOST = 600  # images of a page
BYTES = 3_000_000  # of them, before base64
_SIDE = 32  # pixels of a blurred image
_DIGITS = 16  # of a sha256 in a file's name

Row = tuple[str, int]  # row_id, sample
_Place = tuple[str, str, str, int]  # defense, variant, row_id, sample


def choose(parts: Sequence[ResultGroup], policies: Policies, most: int = MOST) -> list[Row]:
    """Rows whose images are shown, of all methods: those on which methods differ first, then an even spread.

    Args:
        parts: of the run, in its order.
        policies: by concept, the main one first; it says what differs.
        most: images, over all methods.
    """
    seen: dict[Row, set[bool | None]] = {}
    for part in parts:
        main = next(iter(policies[part.concept]), None)
        given = verdicts(main, part.rows).to_pylist() if main else [None] * part.rows.num_rows
        drawn = part.rows["image_sha256"].is_valid().to_pylist()
        ids, samples = part.rows["row_id"].to_pylist(), part.rows["sample"].to_pylist()
        for row_id, sample, verdict, there in zip(ids, samples, given, drawn, strict=True):
            if there:
                seen.setdefault((row_id, sample), set()).add(verdict)
    methods = max(1, len({(part.defense, part.variant) for part in parts}))
    count = min(len(seen), max(1, most // methods))
    differ = [row for row, own in seen.items() if {True, False} <= own]
    alike = [row for row, own in seen.items() if not {True, False} <= own]
    chosen = _spread(differ, count)
    return chosen + _spread(alike, count - len(chosen))


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most ``count`` of them, evenly spaced."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def embed(
    parts: Sequence[ResultGroup], chosen: Sequence[Row], shards: Iterable[Path], revealed: bool
) -> dict[int, str]:
    """Data URLs of the images of ``chosen``, by the number of the row over all parts; as many as fit.

    Args:
        parts: of the run, in its order.
        chosen: see ``choose``; the first are the first to fit.
        shards: image shards of the run (Parquet, schema IMAGE); of one that was removed nothing is shown.
        revealed: the run is of the shapes world alone.
    """
    images = {place: encode(image, revealed) for place, image in _stored(shards, set(chosen))}
    numbers = {place: i for i, place in enumerate(_places(parts))}
    by_row: dict[Row, list[_Place]] = {}
    for place in images:
        by_row.setdefault(place[2:], []).append(place)
    shown: dict[int, str] = {}
    size = 0
    for row in chosen:
        own = {numbers[place]: images[place] for place in by_row.get(row, ()) if place in numbers}
        size += sum(map(len, own.values()))
        if size > BYTES:
            break
        shown |= {i: f"data:image/png;base64,{base64.b64encode(png).decode()}" for i, png in own.items()}
    return dict(sorted(shown.items()))


def copy(parts: Sequence[ResultGroup], chosen: Sequence[Row], shards: Iterable[Path], folder: Path) -> int:
    """Copy images as they are into a private folder, from which a page can be told to show them; returns how many.

    Each file is called by the first digits of its image's sha256, see ``names``, and readable by its owner alone.
    """
    places = dict(
        zip(_places(parts), (h for part in parts for h in part.rows["image_sha256"].to_pylist()), strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    copied = set()
    for place, image in _stored(shards, set(chosen)):
        name = _name(places[place])
        buffer = io.BytesIO()
        Image.open(io.BytesIO(image)).convert("RGB").save(buffer, format="PNG")  # nothing but the image
        write_atomically(folder / name, buffer.getvalue())
        (folder / name).chmod(0o600)
        copied.add(name)
    return len(copied)


def names(parts: Sequence[ResultGroup], numbers: Iterable[int]) -> dict[int, str]:
    """What the files of ``copy`` are called, by the number of the row over all parts."""
    hashes = [h for part in parts for h in part.rows["image_sha256"].to_pylist()]
    return {number: _name(hashes[number]) for number in numbers}


def _name(sha256: str) -> str:
    return f"{sha256[:_DIGITS]}.png"


def _places(parts: Sequence[ResultGroup]) -> list[_Place]:
    """Method and row of every row over all parts."""
    return [
        (part.defense, part.variant, *row)
        for part in parts
        for row in zip(part.rows["row_id"].to_pylist(), part.rows["sample"].to_pylist(), strict=True)
    ]


def _stored(shards: Iterable[Path], wanted: set[Row]) -> Iterator[tuple[_Place, bytes]]:
    """The stored images of ``wanted``, one shard after another."""
    for path in shards:
        if not path.exists():
            continue
        ids = read(path, ["row_id", "sample"]).to_pylist()
        here = [i for i, e in enumerate(ids) if (e["row_id"], e["sample"]) in wanted]
        if here:
            for e in read(path, [*KEY, "image"]).take(pa.array(here)).to_pylist():
                if e["image"] is not None:
                    yield (e["defense"], e["variant"], e["row_id"], e["sample"]), e["image"]


def encode(image: bytes, revealed: bool) -> bytes:
    """An image as PNG: as it is if it may be shown, else blurred and 32 pixels at most a side."""
    opened: Image.Image = Image.open(io.BytesIO(image))
    shown = may_show(opened, revealed)
    if shown and opened.format == "PNG" and not opened.info:  # nothing but the image is in it
        return image
    opened = opened.convert("RGB")
    if not shown:
        if max(opened.size) > 2 * _SIDE:  # the same blur, of fewer pixels
            opened = ImageOps.contain(opened, (2 * _SIDE, 2 * _SIDE), Image.Resampling.BOX)
        opened = ImageOps.contain(blurred(opened), (_SIDE, _SIDE))
    buffer = io.BytesIO()
    opened.save(buffer, format="PNG")
    return buffer.getvalue()
