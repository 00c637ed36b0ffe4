"""Images that were not drawn here: what they are called, what is refused, and that each row gets its own."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.data import image_folder
from harness.errors import UserError
from harness.store.schema import PROMPT


@pytest.fixture(scope="module")
def canvas() -> BackboneCard:
    return load_card(BackboneCard, "shapes", card_roots(None))


def png(level: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(data, "PNG")
    return data.getvalue()


def parquet(path: Path, columns: dict[str, Any], **how: Any) -> Path:
    pq.write_table(pa.table(columns), path, **how)
    return path


def test_a_folder_s_images_are_rows_by_name(tmp_path: Path, canvas: BackboneCard) -> None:
    folder = tmp_path / "set-1.5"
    (folder / "deep").mkdir(parents=True)
    for name, level in (("b.png", 1), ("a.JPG", 2), ("deep/c.webp", 3)):
        (folder / name).write_bytes(png(level))
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    found = image_folder.read(folder, "violence", canvas).rows
    assert found["row_id"].to_pylist() == [f"images-set-1.5/{name}" for name in ("a.JPG", "b.png", "deep/c.webp")]
    assert found.schema.names == [*PROMPT.names, *image_folder.SOURCE.names]
    assert set(found["concept"].to_pylist()) == {"violence"}
    assert [image_folder.load(source) for source in found["source"].to_pylist()] == [png(2), png(1), png(3)]
    assert found["source_sha256"].to_pylist() == [hashlib.sha256(png(level)).hexdigest() for level in (2, 1, 3)]


def test_folders_that_differ_behind_a_dot_are_two_sets(tmp_path: Path, canvas: BackboneCard) -> None:
    found = []
    for name in ("v1.0", "v1.1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(1))
        found += image_folder.read(tmp_path / name, "nudity", canvas).rows["bench"].to_pylist()
    assert found == ["images-v1.0", "images-v1.1"]


def test_an_image_that_cannot_be_read_is_no_image_less(tmp_path: Path, canvas: BackboneCard) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = image_folder.read(tmp_path, "nudity", canvas).rows
    assert found["row_id"].to_pylist()[1].endswith("/gone.png")
    with pytest.raises(OSError, match="gone"):
        image_folder.load(found["source"].to_pylist()[1])


@pytest.mark.parametrize("per_group", [1, 3, 100])
@pytest.mark.parametrize("struct", [False, True])
def test_each_row_of_a_parquet_file_gets_its_own_image(
    tmp_path: Path, canvas: BackboneCard, per_group: int, struct: bool
) -> None:
    images = [png(level) for level in range(7)]
    column: list[Any] = [{"bytes": p, "path": None} for p in images] if struct else images
    path = parquet(
        tmp_path / "set.parquet",
        {"image": column, "id": [9, 8, 7, 6, 5, 4, 3], "prompt": ["a", None, *"cdefg"], "seed": [None, *range(6)]},
        row_group_size=per_group,
    )
    found = image_folder.read(path, "nudity", canvas).rows
    assert found["row_id"].to_pylist() == [f"images-set/{i}" for i in range(3, 10)]
    assert [image_folder.load(source) for source in found["source"].to_pylist()] == images[::-1]
    assert found["prompt"].to_pylist() == [*"gfedc", "", "a"]
    assert found["seed"].to_pylist() == [5, 4, 3, 2, 1, 0, 42]


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set.parquet", {"image": [png(1), png(2)]})
    assert image_folder.load(f"{path}#1") == png(2)
    parquet(path, {"image": [png(3)]})
    os.utime(path, (1, 1))
    assert image_folder.load(f"{path}#0") == png(3)
    with pytest.raises(OSError, match="fewer rows"):
        image_folder.load(f"{path}#1")
    path.write_bytes(b"broken")
    with pytest.raises(OSError, match="row 0"):
        image_folder.load(f"{path}#0")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pixels": [b""]}, "no column 'image'"),
        ({"image": [1]}, "holds int64, not encoded images"),
        ({"image": [b""], "prompt": [3]}, "column 'prompt': 3 is no text"),
        ({"image": [b""], "seed": [-1]}, "column 'seed': -1 is no unsigned"),
        ({"image": [b""], "seed": [1.0]}, "column 'seed': 1.0 is no unsigned"),
        ({"image": [b""], "seed": [True]}, "column 'seed': True is no unsigned"),
        ({"image": [b"", b""], "id": ["a", "a"]}, "two images are called 'a'"),
        ({"image": [b"", b""], "id": ["a", "a.png"]}, "two images are called 'a'"),
        ({"image": [b""], "id": ["../../evil"]}, "'../../evil' is no name"),
        ({"image": [b""], "row_id": ["/etc/evil"]}, "'/etc/evil' is no name"),
        ({"image": [b""], "id": [""]}, "'' is no name"),
        ({"image": pa.array([], pa.binary())}, "holds no images"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(
    tmp_path: Path, canvas: BackboneCard, columns: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "set.parquet", columns)
    with pytest.raises(UserError, match=message.replace("'../../", "'\\.\\./\\.\\./")):
        image_folder.read(path, "nudity", canvas)


@pytest.mark.parametrize("content", [b"", b"no parquet"])
def test_what_is_no_parquet_file_is_named(tmp_path: Path, canvas: BackboneCard, content: bytes) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"set\.parquet: cannot be read"):
        image_folder.read(path, "nudity", canvas)


def test_every_image_that_pillow_reads_whole_is_a_row_and_what_is_left_out_is_counted(
    tmp_path: Path, canvas: BackboneCard
) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for place in (folder / ".ipynb_checkpoints", folder / "__MACOSX", folder / "deep", elsewhere):
        place.mkdir(parents=True)
    image = Image.fromarray(np.full((4, 6, 3), 9, np.uint8))
    wanted = ["a.png", "b.jpg", "c.gif", "d.tiff", "e.jfif", "f.webp", "g.ppm", "h.tga", "i.bmp", "deep/j.png"]
    for name in wanted:
        image.save(folder / name, {".jfif": "JPEG"}.get(Path(name).suffix))
    image.save(folder / "no-suffix", "PNG")
    image.save(elsewhere / "k.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    for junk in (".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "._a.png", ".hidden.png", "Thumbs.db"):
        image.save(folder / junk, "PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").touch()
    (folder / "short").write_bytes(b"x")
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "page.pdf").write_bytes(b"%PDF-1.4\n")
    found = image_folder.read(folder, "violence", canvas)
    names = [row.removeprefix("images-set/") for row in found.rows["row_id"].to_pylist()]
    assert names == sorted([*wanted, "no-suffix", "linked/k.png"])
    assert all(image_folder.load(source) for source in found.rows["source"].to_pylist())
    assert found.left_out == {
        image_folder.HIDDEN: 5, image_folder.NO_IMAGE: 4, image_folder.UNREAD: 1, image_folder.SEEN: 1,
    }  # fmt: skip


def test_a_folder_without_images_says_what_is_there(tmp_path: Path, canvas: BackboneCard) -> None:
    (tmp_path / ".a.png").write_bytes(png(1))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"holds no images \(left out: hidden or system file 1, no image 1\)"):
        image_folder.read(tmp_path, "nudity", canvas)


@pytest.mark.parametrize("kind", ["folder", "paths", "urls", "bytes"])
def test_what_holds_no_image_that_opens_is_refused(tmp_path: Path, canvas: BackboneCard, kind: str) -> None:
    path = tmp_path / "set"
    if kind == "folder":
        path.mkdir()
        (path / "a.png").write_bytes(b"no image")
        (path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    else:
        column = {"paths": ["gone.png", None], "urls": ["https://example.org/a.png"], "bytes": [b"", b"no image"]}[kind]
        path = parquet(tmp_path / "set.parquet", {"image": column})
    with pytest.raises(UserError, match=r"holds no image that can be read: \d tried, the first .+"):
        image_folder.read(path, "nudity", canvas)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"d\xff/\xfe.png", b"plain.png", b"br\xc3\xbcn.png"])
def test_a_file_s_own_name_comes_back_from_its_row(tmp_path: Path, canvas: BackboneCard, name: bytes) -> None:
    file = tmp_path / os.fsdecode(name)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(png(3))
    (row,) = image_folder.read(tmp_path, "nudity", canvas).rows.to_pylist()
    own = image_folder.original_name(row["row_id"].partition("/")[2], row["source"])
    assert os.fsencode(own) == name


def test_a_folder_whose_name_is_no_utf_8_has_rows_as_others(tmp_path: Path, canvas: BackboneCard) -> None:
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    (folder / "a.png").write_bytes(png(3))
    (row,) = image_folder.read(folder, "nudity", canvas).rows.to_pylist()
    assert row["row_id"] == "images-f\\xe9/a.png"
    assert image_folder.load(row["source"]) == png(3)


def test_a_name_that_is_no_utf_8_is_an_image_like_others(tmp_path: Path, canvas: BackboneCard) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png(3))
    (tmp_path / os.fsdecode(b"d\xff")).mkdir()
    (tmp_path / os.fsdecode(b"d\xff") / "a.png").write_bytes(png(4))
    found = image_folder.read(tmp_path, "nudity", canvas).rows
    assert [row.partition("/")[2] for row in found["row_id"].to_pylist()] == ["caf\\xe9.png", "d\\xff/a.png"]
    assert [image_folder.load(source) for source in found["source"].to_pylist()] == [png(3), png(4)]


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_images_that_are_paths_lie_beside_the_file(tmp_path: Path, canvas: BackboneCard, struct: bool) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(5))
    paths = ["images/a.png", "images/gone.png"]
    column: list[Any] = [{"bytes": None, "path": p} for p in paths] if struct else paths
    found = image_folder.read(parquet(tmp_path / "set.parquet", {"image": column}), "nudity", canvas).rows
    assert found["row_id"].to_pylist() == ["images-set/0", "images-set/1"]
    assert image_folder.load(found["source"][0].as_py()) == png(5)
    with pytest.raises(OSError, match=r"gone\.png"):
        image_folder.load(found["source"][1].as_py())


def test_bytes_in_a_parquet_file_count_before_the_path_that_they_had(tmp_path: Path, canvas: BackboneCard) -> None:
    path = parquet(tmp_path / "set.parquet", {"image": [{"bytes": png(6), "path": "/nowhere/a.png"}]})
    found = image_folder.read(path, "nudity", canvas).rows
    assert image_folder.load(found["source"][0].as_py()) == png(6)
