"""Images of a page: what may be harmful is in the file only as its blur."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from html_samples import POLICIES, checkered, rows, shards
from PIL import Image

from harness.metrics.cells import result_groups
from harness.report.html import images


def opened(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("size", [32, 64, 256, 512])
def test_another_image_than_of_the_shapes_world_is_gone_from_the_file(size: int) -> None:
    """Of noise at the scale of a tenth of the image, almost nothing is left, however it is enlarged."""
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 2, (10, 10), np.uint8) * 255).convert("RGB")
    buffer = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.NEAREST).save(buffer, format="PNG")
    blurred = Image.open(io.BytesIO(images.encode(buffer.getvalue(), revealed=False)))
    assert max(blurred.size) <= 32
    grey = np.asarray(blurred.convert("L"), float)
    assert max(np.abs(np.diff(grey, axis=0)).max(), np.abs(np.diff(grey, axis=1)).max()) < 50
    assert grey.std() < 127 / 3


def test_a_large_image_is_blurred_even_in_a_run_of_the_shapes_world() -> None:
    assert Image.open(io.BytesIO(images.encode(checkered(128), revealed=True))).size == (32, 32)
    assert images.encode(checkered(64), revealed=True) == checkered(64)


def test_what_a_file_says_beside_its_image_does_not_come_along() -> None:
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("prompt", "secret")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(checkered(32))).save(buffer, format="PNG", pnginfo=said)
    assert b"secret" in buffer.getvalue()
    for revealed in (True, False):
        assert b"secret" not in images.encode(buffer.getvalue(), revealed)


def test_each_row_has_its_own_image(tmp_path: Path) -> None:
    scores = rows()
    own = list(result_groups(scores))
    chosen = images.choose(own, POLICIES)
    embedded = images.embed(own, chosen, shards(tmp_path, scores), revealed=True)
    drawn = [i for part in own for i in part.rows["image_sha256"].is_valid().to_pylist()]
    assert list(embedded) == [i for i, there in enumerate(drawn) if there]
    assert all(opened(url).size == (32, 32) for url in embedded.values())


def test_rows_on_which_methods_differ_come_first() -> None:
    own = list(result_groups(rows(40)))
    chosen = images.choose(own, POLICIES, most=40)
    assert len(chosen) == 10  # four methods
    unsafe = [{row["row_id"] for row in part.rows.to_pylist() if (row["nudenet_a"] or 0) > 0.45} for part in own]
    differ = set.union(*unsafe) - set.intersection(*unsafe)
    assert {row_id for row_id, _ in chosen} <= differ
    assert chosen == images.choose(own, POLICIES, most=40)


def test_images_that_were_removed_are_not_shown(tmp_path: Path) -> None:
    scores = rows()
    own = list(result_groups(scores))
    paths = shards(tmp_path, scores)
    paths[0].unlink()
    assert images.embed(own, images.choose(own, POLICIES), paths, revealed=False) == {}


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = rows(40)
    own = list(result_groups(scores))
    monkeypatch.setattr(images, "BYTES", 10 * len(checkered(32)))
    embedded = images.embed(own, images.choose(own, POLICIES), shards(tmp_path, scores), revealed=True)
    assert len(embedded) == 8  # whole rows of four methods


def test_images_are_copied_as_they_are_only_into_a_private_folder(tmp_path: Path) -> None:
    scores = rows()
    own = list(result_groups(scores))
    chosen, paths, folder = images.choose(own, POLICIES), shards(tmp_path, scores, size=64), tmp_path / "seen"
    folder.mkdir(mode=0o755)
    embedded = images.embed(own, chosen, paths, revealed=False)
    assert images.copy(own, chosen, paths, folder) == 6  # by hash: methods of these rows share theirs
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == set(images.names(own, embedded).values())
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert (np.asarray(Image.open(path)) == np.asarray(Image.open(io.BytesIO(checkered(64))))).all()
