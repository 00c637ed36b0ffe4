"""The given stage: a picture that cannot be had is its row's error, and costs no other."""

from __future__ import annotations

from pathlib import Path

from base_rows import picture

from harness import images
from harness.cards import load, roots
from harness.schema import IMAGE
from harness.stages.given import Given
from harness.stages.pictures import decode, encode


def test_each_picture_is_taken_or_its_row_says_why_not(tmp_path: Path) -> None:
    whole = encode(picture(0))
    for name, content in (("broken", b"no picture"), ("changed", whole), ("gone", whole), ("whole", whole)):
        (tmp_path / f"{name}.png").write_bytes(content)
    rows = images.read(tmp_path, "nudity", load("backbone", "shapes", roots(None)))
    (tmp_path / "changed.png").write_bytes(encode(picture(1)))
    (tmp_path / "gone.png").unlink()
    found = Given()(rows)
    assert found.schema == IMAGE
    assert found["row_id"].equals(rows["row_id"])
    assert found["error"].to_pylist() == ["undecodable", "changed", "unreadable", None]
    assert [data is None for data in found["image"].to_pylist()] == [True, True, True, False]
    assert (decode(found["image"][3].as_py()) == picture(0)).all()
