from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from harness.errors import UserError
from harness.schema import VERSION
from harness.store import Store, publish, read


def test_a_new_store_is_private_and_says_its_schema(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a" / "store")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert json.loads((store.root / "store.json").read_text()) == {"schema": VERSION}


def test_a_store_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"schema": VERSION + 1}))
    with pytest.raises(UserError, match=f"schema {VERSION + 1}.*update the harness"):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "not json", "[]", "{}"])
def test_a_damaged_marker_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(UserError, match="cannot be used"):
        Store.open(tmp_path)


def test_a_folder_with_other_things_in_it_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a store and not empty"):
        Store.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


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


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(100)), "b": [b"x" * i for i in range(100)]})
    publish(tmp_path / "1.parquet", table)
    publish(tmp_path / "2.parquet", pa.concat_tables([table.slice(0, 40), table.slice(40)]).combine_chunks())
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def _hold(root: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with Store(root).lock():
        ready.set()
        done.wait(30)


def test_two_runs_on_one_store_are_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.root, ready, done))
    process.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match=f"in use by another run.*process {process.pid}"), store.lock():
        pass
    assert process.pid is not None
    os.kill(process.pid, 9)
    process.join()
    with store.lock():
        pass


def test_discarding_images_keeps_everything_else(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    path = store.path("generate", "ab", "cd")
    publish(path, pa.table({"row_id": ["a"], "image": pa.array([b"\0" * 10_000], pa.binary()), "image_sha256": ["f"]}))
    before = path.stat().st_size
    assert store.discard_images([path]) == before - path.stat().st_size > 0
    assert read(path).to_pydict() == {"row_id": ["a"], "image": [None], "image_sha256": ["f"]}


def test_removing_a_fingerprint_leaves_the_others(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    for name in ("one", "two"):
        publish(store.path("generate", name, "x"), pa.table({"a": [1]}))
    freed = store.remove([e for e in store.entries() if e.fingerprint == "one"])
    assert freed > 0
    assert [e.fingerprint for e in store.entries()] == ["two"]
