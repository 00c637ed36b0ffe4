"""The given stage: an image that cannot be had is its row's error, and costs no other."""

from __future__ import annotations

from pathlib import Path

from base_rows import image

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.data import image_folder
from harness.pipeline.stages.images import decode, encode
from harness.pipeline.stages.imported import Given
from harness.store.schema import IMAGE


def test_each_image_is_taken_or_its_row_says_why_not(tmp_path: Path) -> None:
    whole = encode(image(0))
    for name, content in (("broken", b"no image"), ("changed", whole), ("gone", whole), ("whole", whole)):
        (tmp_path / f"{name}.png").write_bytes(content)
    rows = image_folder.read(tmp_path, "nudity", load_card(BackboneCard, "shapes", card_roots(None))).rows
    (tmp_path / "changed.png").write_bytes(encode(image(1)))
    (tmp_path / "gone.png").unlink()
    found = Given()(rows)
    assert found.schema == IMAGE
    assert found["row_id"].equals(rows["row_id"])
    assert found["error"].to_pylist() == ["undecodable", "changed", "unreadable", None]
    assert [data is None for data in found["image"].to_pylist()] == [True, True, True, False]
    assert (decode(found["image"][3].as_py()) == image(0)).all()
