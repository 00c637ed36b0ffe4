"""Images of a user's own from the command line to the saved files: odd names, odd files, and one that is broken."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from desk import Desk
from PIL import Image

from harness.shapes import world

NAMES = [b"a.png", b"b.jfif", b"c.gif", b"caf\xe9.tiff", b"linked/d.png"]


def images(folder: Path) -> None:
    """Five images, one of them an animation and one in a linked folder; two that fail, and what is no image."""
    elsewhere = folder.parent / "elsewhere"
    for place in (folder / ".ipynb_checkpoints", elsewhere):
        place.mkdir(parents=True)
    rng = random.Random(3)
    drawn = [world.render(world.sample_scene(rng), rng) for _ in NAMES]
    (folder / "linked").symlink_to(elsewhere)
    for name, image in zip(NAMES, drawn, strict=True):
        file = folder / os.fsdecode(name)
        more = {"save_all": True, "append_images": [drawn[0]]} if file.suffix == ".gif" else {}
        image.save(file, {".jfif": "JPEG"}.get(file.suffix), **more)
    Image.open(folder / "a.png").save(folder / ".ipynb_checkpoints/a-checkpoint.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "notes").write_text("x")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    made = Desk(tmp_path_factory.mktemp("own"))
    made.profile(shard_rows=8, regenerators="resafe:tokens=2:iterations=2:micro_batch=4")
    images(made.root / os.fsdecode(b"im\xe9ges"))
    return made


def regen(desk: Desk, *words: str) -> list[str]:
    folder = str(desk.root / os.fsdecode(b"im\xe9ges"))
    return ["regen", "--images", folder, "--concept", "nudity", "--profile", "small", "--executor", "inline", *words]


@pytest.mark.slow
def test_good_images_are_saved_under_their_own_names_and_bad_ones_are_named(own: Desk) -> None:
    safer = own.root / os.fsdecode(b"s\xe4fer")
    done = own.run(*regen(own, "--save", str(safer)))
    assert done.code == 3, done.err  # two of seven rows are more than 5%
    (variant,) = safer.iterdir()
    saved = sorted(os.fsencode(p.relative_to(variant)) for p in variant.rglob("*.png"))
    assert saved == sorted(name.removesuffix(b".png") + b".png" for name in NAMES)
    assert {"broken.png", "gone.png"} <= {word.strip(",") for word in done.err.split("not written")[1].split()}
    terminal, (report,) = done.out, own.out.glob("*/report.md")
    for text in (terminal, report.read_text()):
        assert "error: undecodable: imported 1 (broken.png)" in text
        assert "error: unreadable: imported 1 (gone.png)" in text
        assert "hidden or system file: imported 1" in text
        assert "no image: imported 1" in text
        assert "first-frame-of-several: imported 1" in text
    again = own.run(*regen(own, "--json"))
    asr = next(c for c in again.json["cells"] if c["metric"] == "asr")
    assert asr["failed_rows"]["error: undecodable"] == ["images-im\\xe9ges/broken.png"]
    assert asr["n"] == len(NAMES)
    assert asr["notes"] == {"first-frame-of-several": 1, "left out, hidden or system file": 1, "left out, no image": 1}
    assert json.loads((report.parent / "run.json").read_text())["command"].count("$'") == 1


@pytest.mark.parametrize("save", ["/proc/x", "/proc/self/fd/x/y", "file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(own: Desk, save: str) -> None:
    (own.root / "file").touch()
    before = {p: p.is_file() for p in own.root.rglob("*")}
    done = own.run(*regen(own, "--save", save), store="none", out="none")
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1
    assert "--save" in done.err
    assert {p: p.is_file() for p in own.root.rglob("*")} == before
