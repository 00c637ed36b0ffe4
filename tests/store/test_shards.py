from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from harness.errors import UserError
from harness.store.files import write_atomically
from harness.store.schema import VERSION
from harness.store.shards import Store, is_complete, publish, read


def test_a_new_store_is_private_and_says_its_schema(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a" / "store")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert json.loads((store.root / "store.json").read_text()) == {"schema": VERSION}


def test_a_store_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"schema": VERSION + 1}))
    with pytest.raises(UserError, match=f"schema {VERSION + 1}.*update the harness"):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "not json", "[]", "{}", '{"schema": "new"}', '{"schema": null}'])
def test_a_damaged_marker_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be used: .*store.json is damaged"):
        Store.open(tmp_path)


def test_a_folder_with_other_things_in_it_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a store and not empty"):
        Store.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_whose_maker_was_killed_is_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / ".store.json.0123").write_text('{"sch')
    assert Store.open(tmp_path).root == tmp_path
    assert Store.is_at(tmp_path)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be used"):
        Store.open(tmp_path / "file")


def test_only_the_first_writer_publishes(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "fp" / "shard.parquet"
    assert publish(path, pa.table({"a": [1]}))
    assert not publish(path, pa.table({"a": [2]}))
    assert read(path).to_pydict() == {"a": [1]}
    assert list((path.parent / ".tmp").iterdir()) == []


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_shard_that_was_cut_short_is_not_there_and_is_written_over(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "shard.parquet"
    assert not is_complete(path)
    publish(path, pa.table({"a": list(range(1000))}))
    good = path.read_bytes()
    assert is_complete(path)
    path.write_bytes(good[:kept])
    assert not is_complete(path)
    assert publish(path, pa.table({"a": list(range(1000))}))
    assert path.read_bytes() == good
    assert not publish(path, pa.table({"a": [1]}))


def test_damage_inside_a_shard_is_named_and_never_read(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    publish(path, pa.table({"a": [os.urandom(1000)]}))
    content = bytearray(path.read_bytes())
    content[500] ^= 1  # in the incompressible value: only its checksum can tell
    path.write_bytes(content)
    assert is_complete(path)
    with pytest.raises(UserError, match=r"shard.parquet is damaged .*: remove it and run the same command again"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.parquet")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "fp" / "shard.parquet"
    for write in (lambda: publish(path, pa.table({"a": [1]})), lambda: write_atomically(path, b"x")):
        with pytest.raises(OSError, match="No space left"):
            write()
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("note", ["3", "[]", "{}", '{"seconds": 1', ""])
def test_a_torn_note_of_a_cost_is_no_cost(tmp_path: Path, note: str) -> None:
    path = tmp_path / "shard.parquet"
    Store.note_cost(path, 1.5, 3, "cpu")
    assert (Store.cost(path) or {})["seconds"] == 1.5
    path.with_suffix(".cost.json").write_text(note)
    assert Store.cost(path) is None


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(100)), "b": [b"x" * i for i in range(100)]})
    publish(tmp_path / "1.parquet", table)
    publish(tmp_path / "2.parquet", pa.concat_tables([table.slice(0, 40), table.slice(40)]).combine_chunks())
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_file_system_without_hard_links_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "stage" / "fp" / "shard.parquet"
    assert publish(path, pa.table({"a": [1]}))
    assert not publish(path, pa.table({"a": [1]}))
    assert read(path).to_pydict() == {"a": [1]}
    path.write_bytes(path.read_bytes()[:50])
    assert publish(path, pa.table({"a": [1]}))
    assert read(path).to_pydict() == {"a": [1]}
    assert list((path.parent / ".tmp").iterdir()) == []


def test_another_failure_of_a_link_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="Input/output"):
        publish(tmp_path / "shard.parquet", pa.table({"a": [1]}))
    assert not (tmp_path / "shard.parquet").exists()


def test_discarding_images_keeps_everything_else(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    path = store.path("generate", "ab", "cd")
    publish(path, pa.table({"row_id": ["a"], "image": pa.array([b"\0" * 10_000], pa.binary()), "image_sha256": ["f"]}))
    before = path.stat().st_size
    assert store.discard_images([path]) == before - path.stat().st_size > 0
    assert read(path).to_pydict() == {"row_id": ["a"], "image": [None], "image_sha256": ["f"]}


def test_images_are_found_whatever_stage_made_them(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    image = pa.table({"row_id": ["a"], "image": pa.array([b"x"], pa.binary())})
    for stage in ("generate", "draw", "edit", "given"):
        publish(store.path(stage, "f", "x"), image)
    publish(store.path("score-a", "f", "x"), pa.table({"row_id": ["a"]}))
    found = store.images(store.entries())
    assert sorted(p.parent.parent.name for p in found) == ["draw", "edit", "generate", "given"]
    store.discard_images(found)
    assert all(read(p)["image"].to_pylist() == [None] for p in found)


def test_removing_a_fingerprint_leaves_the_others(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    for name in ("one", "two"):
        publish(store.path("generate", name, "x"), pa.table({"a": [1]}))
    freed = store.remove([e for e in store.entries() if e.fingerprint == "one"])
    assert freed > 0
    assert [e.fingerprint for e in store.entries()] == ["two"]
