"""The images of a page: those of the shapes world as they are, all others only under a strong blur.

What lies in the file of another image is its blur, 32 pixels a side: nothing in the page can bring the image back.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageOps

from harness.metrics.cells import Part, Policies
from harness.metrics.policies import verdicts
from harness.report.contact_sheet import blurred, may_show
from harness.store.schema import KEY
from harness.store.shards import read

MOST = 600  # images of a page
BYTES = 3_000_000  # of them, before base64
_SIDE = 32  # pixels of a blurred image

Row = tuple[str, int]  # row_id, sample
_Place = tuple[str, str, str, int]  # defense, variant, row_id, sample


def choose(parts: Sequence[Part], policies: Policies, most: int = MOST) -> list[Row]:
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


def embed(parts: Sequence[Part], chosen: Sequence[Row], shards: Iterable[Path], revealed: bool) -> dict[int, str]:
    """Data URLs of the images of ``chosen``, by the number of the row over all parts; as many as fit.

    Args:
        parts: of the run, in its order.
        chosen: see ``choose``; the first are the first to fit.
        shards: image shards of the run (Parquet, schema IMAGE); of one that was removed nothing is shown.
        revealed: the run is of the shapes world alone.
    """
    images = _encoded(shards, set(chosen), revealed)
    numbers: dict[_Place, int] = {}
    start = 0
    for part in parts:
        ids, samples = part.rows["row_id"].to_pylist(), part.rows["sample"].to_pylist()
        places = ((part.defense, part.variant, *row) for row in zip(ids, samples, strict=True))
        numbers |= {place: start + i for i, place in enumerate(places)}
        start += part.rows.num_rows
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


def _encoded(shards: Iterable[Path], wanted: set[Row], revealed: bool) -> dict[_Place, bytes]:
    """The images of ``wanted`` as the page holds them."""
    images: dict[_Place, bytes] = {}
    for path in shards:
        if not path.exists():
            continue
        ids = read(path, ["row_id", "sample"]).to_pylist()
        here = [i for i, e in enumerate(ids) if (e["row_id"], e["sample"]) in wanted]
        if here:
            for e in read(path, [*KEY, "image"]).take(pa.array(here)).to_pylist():
                if e["image"] is not None:
                    place = (e["defense"], e["variant"], e["row_id"], e["sample"])
                    images[place] = encode(e["image"], revealed)
    return images


def encode(image: bytes, revealed: bool) -> bytes:
    """An image as PNG: as it is if it may be shown, else blurred and 32 pixels at most a side."""
    opened: Image.Image = Image.open(io.BytesIO(image))
    shown = may_show(opened, revealed)
    if shown and opened.format == "PNG" and not opened.info:  # nothing but the image is in it
        return image
    opened = opened.convert("RGB")
    if not shown:
        opened = ImageOps.contain(blurred(opened), (_SIDE, _SIDE))
    buffer = io.BytesIO()
    opened.save(buffer, format="PNG")
    return buffer.getvalue()
