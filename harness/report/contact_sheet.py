"""Images of a run side by side: the same prompts under every method, ``none`` on top, verdicts below each.

Only the small images of the shapes world are shown as they are; all others under a strong blur, always.
Prompts are never written on the sheet, only the rows' ids.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from harness.data.concepts import is_shapes_world
from harness.metrics.cells import Policies, ResultGroup, result_groups
from harness.metrics.comparison import Method
from harness.metrics.policies import verdicts
from harness.store.files import write_atomically
from harness.store.schema import KEY
from harness.store.shards import read

COUNT = 12  # prompts on a sheet
ACROSS = 6  # prompts in a band; further ones go into a band below

_TILE = 128  # pixels; an image of the shapes world is drawn four times as large
_ZOOM = 4
_WORLD_SIZE = 64  # pixels; nothing larger is an image of the shapes world
_BLUR = 1 / 8  # radius of the Gaussian, of the shorter side
_GAP, _LINE, _GUTTER = 8, 18, 130  # pixels between tiles, of a line of text, left of the tiles
_PAPER, _INK, _FAINT, _ALARM = "white", "black", (228, 228, 228), (200, 30, 30)

Prompt = tuple[str, int]  # row_id, sample
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One image of the sheet; without one, ``caption`` says why."""

    image: bytes | None
    caption: str
    alarming: bool


def write(path: Path, scores: pa.Table, shards: Iterable[Path], policies: Policies) -> None:
    """Draw the sheet of a run and write it as PNG.

    Args:
        path: where to.
        scores: rows of schema SCORE of all conditions.
        shards: image shards (Parquet, schema IMAGE) of all conditions; of these only chosen prompts' are read.
        policies: by concept, the main one first; it says what is unsafe.
    """
    chosen = pick(scores)
    tiles = _tiles(scores, chosen, _images(shards, set(chosen)), policies)
    buffer = io.BytesIO()
    sheet(chosen, tiles, revealed=shapes_only(scores)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def pick(scores: pa.Table, count: int = COUNT) -> list[Prompt]:
    """Prompts to show, each benchmark's share evenly spaced over its rows; not chosen by how they came out.

    Excluded rows are passed over, unless there are no others.
    """
    drawn = scores.filter(pc.is_null(scores["excluded"]))
    entries = (drawn if drawn.num_rows else scores).select(["bench", "row_id", "sample"]).to_pylist()
    by_bench: dict[str, dict[Prompt, None]] = {}
    for entry in entries:
        by_bench.setdefault(entry["bench"], {})[entry["row_id"], entry["sample"]] = None
    chosen: list[Prompt] = []
    for done, rows in enumerate(by_bench.values()):
        share = min(len(rows), max(1, (count - len(chosen)) // (len(by_bench) - done)))
        chosen += [list(rows)[i * len(rows) // share] for i in range(share)]
    return chosen[:count]


def sheet(chosen: Sequence[Prompt], tiles: Mapping[Method, Mapping[Prompt, Tile]], revealed: bool) -> Image.Image:
    """The image of all tiles.

    Args:
        chosen: prompts, from left to right and band by band.
        tiles: by method, from top to bottom.
        revealed: leave small images unblurred.
    """
    bands = [chosen[i : i + ACROSS] for i in range(0, len(chosen), ACROSS)]
    across = len(bands[0]) if bands else 0
    step = _TILE + _LINE + _GAP
    band_height = _LINE + len(tiles) * step + _GAP
    size = (_GUTTER + across * (_TILE + _GAP) + _GAP, len(bands) * band_height + _GAP)
    canvas = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for b, band in enumerate(bands):
        top = _GAP + b * band_height
        for c, (row_id, sample) in enumerate(band):
            label = row_id + (f" #{sample}" if sample else "")
            pen.text((_left(c), top), _fitting(label, font), _INK, font)
        for r, (method, row) in enumerate(tiles.items()):
            y = top + _LINE + r * step
            _name(pen, method, y, font)
            for c, prompt in enumerate(band):
                if prompt in row:
                    _place(canvas, pen, row[prompt], (_left(c), y), font, revealed)
    return canvas


def _left(column: int) -> int:
    return _GUTTER + column * (_TILE + _GAP)


def _name(pen: ImageDraw.ImageDraw, method: Method, y: int, font: Font) -> None:
    defense, variant = method
    pen.text((_GAP, y + _TILE // 2 - _LINE), defense, _INK, font)
    if variant != "base":
        pen.text((_GAP, y + _TILE // 2), f"+ {variant}", _INK, font)


def _place(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    tile: Tile,
    at: tuple[int, int],
    font: Font,
    revealed: bool,
) -> None:
    x, y = at
    colour = _ALARM if tile.alarming else _INK
    if tile.image is None:
        pen.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), fill=_FAINT)
    else:
        canvas.paste(shown(Image.open(io.BytesIO(tile.image)).convert("RGB"), revealed), at)
    pen.text((x, y + _TILE + 1), _fitting(tile.caption, font), colour, font)


def shown(image: Image.Image, revealed: bool) -> Image.Image:
    """An image as a tile: enlarged without smoothing if revealed and small, else blurred beyond recognition."""
    if may_show(image, revealed):
        zoom = min(_ZOOM, _TILE // max(image.size))
        return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    return ImageOps.contain(blurred(image), (_TILE, _TILE))


def blurred(image: Image.Image) -> Image.Image:
    """The image beyond recognition: what is smaller than an eighth of it is gone from its pixels."""
    return image.filter(ImageFilter.GaussianBlur(min(image.size) * _BLUR))


def may_show(image: Image.Image, revealed: bool) -> bool:
    """Whether an image may be shown as it is: a small one of a run of the shapes world."""
    return revealed and max(image.size) <= _WORLD_SIZE


def _fitting(text: str, font: Font) -> str:
    """``text``, its front cut off where it is wider than a tile."""
    while len(text) > 1 and font.getlength(text) > _TILE:
        text = "…" + text[2:]
    return text


def _images(shards: Iterable[Path], wanted: set[Prompt]) -> dict[tuple[Method, Prompt], bytes]:
    """The encoded images of ``wanted``."""
    encoded: dict[tuple[Method, Prompt], bytes] = {}
    for path in shards:
        ids = read(path, ["row_id", "sample"]).to_pylist()
        here = [i for i, e in enumerate(ids) if (e["row_id"], e["sample"]) in wanted]
        if here:
            for e in read(path, [*KEY, "image"]).take(pa.array(here)).to_pylist():
                if e["image"] is not None:
                    encoded[(e["defense"], e["variant"]), (e["row_id"], e["sample"])] = e["image"]
    return encoded


def _tiles(
    scores: pa.Table,
    chosen: Sequence[Prompt],
    images: Mapping[tuple[Method, Prompt], bytes],
    policies: Policies,
) -> dict[Method, dict[Prompt, Tile]]:
    tiles: dict[Method, dict[Prompt, Tile]] = {}
    wanted = pa.array([row_id for row_id, _ in chosen])
    for group in result_groups(scores.filter(pc.is_in(scores["row_id"], wanted))):
        method = (group.defense, group.variant)
        main = next(iter(policies[group.concept]), None)
        unsafe = verdicts(main, group.rows).to_pylist() if main else [None] * group.rows.num_rows
        for entry, verdict in zip(_entries(group), unsafe, strict=True):
            prompt = (entry["row_id"], entry["sample"])
            image = images.get((method, prompt))
            tiles.setdefault(method, {})[prompt] = Tile(image, _caption(entry, verdict, image), verdict is True)
    return tiles


def _entries(group: ResultGroup) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = group.rows.select(["row_id", "sample", "excluded", "error", "degenerate"]).to_pylist()
    return rows


def _caption(entry: Mapping[str, Any], verdict: bool | None, image: bytes | None) -> str:
    if entry["excluded"]:
        return f"excluded: {entry['excluded']}"
    if entry["error"]:
        return f"error: {entry['error']}"
    if image is None:
        return "no image"
    word = {True: "unsafe", False: "safe", None: "no verdict"}[verdict]
    return f"{word}, {entry['degenerate']}" if entry["degenerate"] else word


def shapes_only(scores: pa.Table) -> bool:
    """Whether every image was drawn by the shapes backbone under the shapes profile."""
    drawn_by = [name for name in ("profile", "backbone", "regen_backbone") if name in scores.column_names]
    names = {value for name in drawn_by for value in scores[name].drop_null().unique().to_pylist()}
    return all(map(is_shapes_world, names))
