"""``harness score RUN``: it adds to images that are there, and is refused where they would first have to be drawn.

The images here are not drawn: a plan, its record and shards with the plan's names are all that the command looks at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from desk import Desk

from harness.cli import main
from harness.data import guard
from harness.pipeline.evaluate import Places, prepare
from harness.pipeline.plan import Plan
from harness.pipeline.record import record_of, require_images
from harness.pipeline.request import Request
from harness.pipeline.results import images_of
from harness.store.shards import Store, discarded, publish

COMMAND = "harness eval --defense none --bench ten --profile small"


class Run:
    """A finished run over the ten prompts of a desk, three shards."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.request = Request(defenses=("none",), benches=("ten",), profile="small", regens=("none",))
        self.places = Places(store=desk.store, out=desk.out, data=desk.root / "data", cards=desk.cards)
        self.store = Store.open(desk.store)
        made = self.plan()
        self.folder = desk.out / made.name
        self.folder.mkdir(parents=True)
        (self.folder / "run.json").write_text(json.dumps(record_of(made, COMMAND)))
        for path, shard in zip(self.images(made), made.conditions[0].shards, strict=True):
            images = {"image": pa.array([b"p" * 5000] * shard.rows.num_rows), "image_sha256": shard.rows["row_id"]}
            publish(path, pa.table(images))

    def plan(self) -> Plan:
        return prepare(self.request, self.places)

    def images(self, made: Plan) -> list[Path]:
        return images_of(made, self.store)


@pytest.fixture
def run(desk: Desk) -> Run:
    return Run(desk)


@pytest.fixture
def untouched(run: Run) -> Iterator[None]:
    """Nothing is written by what is refused (hashes of files apart)."""
    before = _files(run.desk.root)
    yield
    assert _files(run.desk.root) == before


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.name not in ("sha256.json", ".lock"))


def _refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run, *more: str, store: str = "store"
) -> str:
    words = ["score", str(run.folder), "--scorer", "shapes_classifier", "--executor", "inline"]
    folders = ["--cards", str(run.desk.cards), "--store", str(run.desk.root / store)]
    monkeypatch.setattr(sys, "argv", ["harness", *words, *folders, *more])
    with pytest.raises(SystemExit) as left:
        main()
    shown = capsys.readouterr()
    assert (left.value.code, shown.out, shown.err.count("\n")) == (2, "", 1), shown.err
    return shown.err


def test_a_run_whose_images_are_there_is_let_through(run: Run) -> None:
    about = json.loads((run.folder / "run.json").read_text())
    require_images(run.folder, about, run.plan(), run.store)


@pytest.mark.usefixtures("untouched")
def test_a_change_of_what_draws_is_named_with_its_stage(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = guard.VERSION
    monkeypatch.setattr(guard, "VERSION", 99)
    said = _refused(monkeypatch, capsys, run)
    assert f"ten/none/generate: guard: {before} -> 99" in said
    assert COMMAND in said


@pytest.mark.usefixtures("untouched")
def test_other_prompts_are_another_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.desk.cards / "datasets/ten.csv"
    file.write_text(file.read_text().replace("a red star", "a blue star", 1))
    assert "ten/none/generate: shards" in _refused(monkeypatch, capsys, run)


def test_another_store_is_refused_with_the_shards_it_lacks(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Store.open(run.desk.root / "other")
    said = _refused(monkeypatch, capsys, run, store="other")
    assert f"3 of the 3 shards of images of {run.folder} are not in the store {other.root}, first generate/" in said
    assert "--store" in said
    assert COMMAND in said
    assert not list(other.root.glob("*/*/*.parquet"))


@pytest.mark.usefixtures("untouched")
def test_no_store_is_refused_and_none_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no store at" in _refused(monkeypatch, capsys, run, store="nowhere")


def test_a_shard_that_was_removed_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = run.images(run.plan())[1]
    gone.unlink()
    said = _refused(monkeypatch, capsys, run)
    assert "1 of the 3 shards" in said
    assert f"generate/{gone.parent.name}/{gone.stem}" in said


def test_images_that_were_discarded_are_refused_before_anything_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = run.images(run.plan())
    assert not any(map(discarded, images))
    run.store.discard_images(images)
    assert all(map(discarded, images))
    said = _refused(monkeypatch, capsys, run)
    assert "were discarded" in said
    assert f"harness store prune --stage generate --fingerprint {images[0].parent.name}" in said


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--profile", "shapes"), "is of profile 'small'"),
        (("--concept", "violence"), "goes with --images"),
        (("--out", "elsewhere"), "is of out "),
    ],
)
def test_what_a_run_settles_itself_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, str], said: str
) -> None:
    shown = _refused(monkeypatch, capsys, run, *words)
    assert said in shown
    assert f"leave {words[0]} out" in shown


@pytest.mark.usefixtures("untouched")
def test_the_environment_s_profile_is_not_a_run_s(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """HARNESS_PROFILE is a habit, no choice: it changes nothing here, as before."""
    monkeypatch.setenv("HARNESS_PROFILE", "shapes")
    assert "no store at" in _refused(monkeypatch, capsys, run, store="nowhere")


def test_a_record_of_something_else_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.folder / "run.json").write_text("{}")
    assert "no request that this harness knows" in _refused(monkeypatch, capsys, run)
