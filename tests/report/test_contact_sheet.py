from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from report_samples import policy

from harness.report.contact_sheet import ACROSS, COUNT, pick, sheet, shown, write
from harness.store.schema import KEY
from harness.store.shards import publish

POLICIES = {"nudity": (policy(),)}
TEXTS = ("row_id", "bench", "concept", "profile", "backbone", "defense", "variant", "excluded", "error", "degenerate")
SCHEMA = pa.schema(
    [(n, pa.string()) for n in TEXTS]
    + [("sample", pa.int32()), ("nudenet_a", pa.float32()), ("nudenet_b", pa.float32()), ("image", pa.binary())]
)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def rows(count: int, size: int = 32, bench: str = "b", defenses: tuple[str, ...] = ("none", "rece")) -> pa.Table:
    """Rows whose images are checkered in pixels, unsafe under ``none``."""
    image = png(checkered(size))
    found: list[dict[str, Any]] = [
        {
            "row_id": f"{bench}/{i:05d}", "bench": bench, "concept": "nudity", "profile": "shapes",
            "backbone": "shapes", "defense": d, "variant": "base", "sample": 0,
            "nudenet_a": float(d == "none"), "nudenet_b": 0.0, "image": image,
        }
        for d in defenses for i in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(found, schema=SCHEMA)


def checkered(size: int) -> Image.Image:
    grey = (np.indices((size, size)).sum(0) % 2 * 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey] * 3, axis=-1))


def written(folder: Path, table: pa.Table, **renamed: str) -> Image.Image:
    for name, value in renamed.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array([value] * table.num_rows))
    shard = folder / "shards" / "0.parquet"
    publish(shard, table.select([*KEY, "image"]))
    write(folder / "contact.png", table.drop_columns(["image"]), [shard], POLICIES)
    return Image.open(folder / "contact.png")


def contrast(image: Image.Image) -> float:
    """Largest step between neighbouring pixels, in grey levels."""
    grey = np.asarray(image.convert("L"), float)
    return float(max(np.abs(np.diff(grey, axis=0)).max(), np.abs(np.diff(grey, axis=1)).max()))


def test_small_images_of_the_shapes_world_are_four_times_as_large_and_exact() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    found = np.asarray(shown(image, revealed=True))
    assert found.shape == (128, 128, 3)
    assert (found[::4, ::4] == np.asarray(image)).all()
    assert (found[3::4, 3::4] == np.asarray(image)).all()


@pytest.mark.parametrize("size", [32, 64, 256, 512, 768])
def test_an_image_that_may_be_harmful_is_blurred_to_a_few_blobs(size: int) -> None:
    """Of noise at the scale of a tenth of the image, almost nothing is left."""
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 2, (10, 10), np.uint8) * 255).convert("RGB")
    image = coarse.resize((size, size), Image.Resampling.NEAREST)
    found = shown(image, revealed=False)
    assert max(found.size) == 128
    assert contrast(image) == 255
    assert contrast(found) < 12
    assert np.asarray(found, float).std() < np.asarray(image, float).std() / 3


def test_a_large_image_is_blurred_even_where_images_are_revealed() -> None:
    assert contrast(shown(checkered(512), revealed=True)) < 12


@pytest.mark.parametrize("renamed", [{"profile": "paper"}, {"backbone": "sd-1-4"}, {"profile": "mine"}])
def test_only_the_shapes_profile_on_its_own_backbone_is_revealed(tmp_path: Path, renamed: dict[str, str]) -> None:
    tile = (130, 26, 130 + 128, 26 + 128)
    plain = written(tmp_path / "a", rows(3)).crop(tile)
    hidden = written(tmp_path / "b", rows(3), **renamed).crop(tile)
    assert contrast(plain) == 255
    assert contrast(hidden) < 12


def test_prompts_are_spread_over_the_benchmark_and_not_chosen_by_outcome() -> None:
    table = rows(95)
    found = [row_id for row_id, _ in pick(table)]
    assert found == [f"b/{i * 95 // 12:05d}" for i in range(12)]
    at = table.column_names.index("nudenet_a")
    flipped = table.set_column(at, "nudenet_a", pa.array(1.0 - np.asarray(table["nudenet_a"]), pa.float32()))
    assert pick(flipped) == pick(table)


def test_benchmarks_share_the_sheet() -> None:
    table = pa.concat_tables([rows(95, bench=b) for b in ("x", "y", "z")])
    found = [row_id.split("/")[0] for row_id, _ in pick(table)]
    assert [found.count(b) for b in ("x", "y", "z")] == [4, 4, 4]


def test_more_benchmarks_than_places_still_fit() -> None:
    table = pa.concat_tables([rows(2, bench=f"b{i}") for i in range(20)])
    assert len(pick(table)) == COUNT


def test_excluded_rows_are_passed_over_unless_there_are_no_others() -> None:
    table = rows(4)
    at = table.column_names.index("excluded")
    some = table.set_column(at, "excluded", pa.array(["age-term", None, None, "age-term"] * 2))
    assert pick(some) == [("b/00001", 0), ("b/00002", 0)]
    every = table.set_column(at, "excluded", pa.array(["age-term"] * 8))
    assert len(pick(every)) == 4


@pytest.mark.parametrize(("prompts", "bands", "across"), [(1, 1, 1), (6, 1, 6), (7, 2, 6), (12, 2, 6), (40, 2, 6)])
def test_the_sheet_has_a_line_per_method_in_bands_of_six(tmp_path: Path, prompts: int, bands: int, across: int) -> None:
    assert ACROSS == 6
    found = written(tmp_path, rows(prompts))
    assert found.width == 130 + across * 136 + 8
    assert found.height == bands * (18 + 2 * 154 + 8) + 8


def test_a_row_without_an_image_keeps_its_place(tmp_path: Path) -> None:
    table = rows(2)
    for name, values in {"error": ["generate:crash", None, None, None], "image": [None] * 4}.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, SCHEMA.field(name).type))
    found = written(tmp_path, table)
    assert found.getpixel((130 + 64, 26 + 64)) == (228, 228, 228)


def test_nothing_to_show_is_an_empty_sheet() -> None:
    assert sheet([], {}, revealed=False).size == (138, 8)


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    written(tmp_path / "a", rows(20))
    written(tmp_path / "b", rows(20))
    assert (tmp_path / "a" / "contact.png").read_bytes() == (tmp_path / "b" / "contact.png").read_bytes()
