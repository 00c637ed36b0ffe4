"""A user's copy: compressed, as Parquet, or something else, and what loaders read of it."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import archives, prompt_file
from harness.errors import UserError

HERE = Path("mine")


def parquet(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@given(st.binary(max_size=300))
def test_gzip_is_undone_and_other_bytes_stay(data: bytes) -> None:
    if not data.startswith((b"\x1f\x8b", b"PAR1", b"PK\x03\x04")):
        assert archives.unpack(data, HERE) == data
        assert archives.unpack(gzip.compress(data, mtime=0), HERE) == data


CELL = st.one_of(st.none(), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))


@given(
    st.lists(st.tuples(CELL, st.one_of(st.none(), st.integers(0, 2**64 - 1)), st.booleans()), min_size=1, max_size=6)
)
def test_the_cells_of_a_parquet_file_are_those_of_the_sheet(rows: list[tuple[str | None, int | None, bool]]) -> None:
    """Line breaks of every kind, quotes and nulls included; an unsigned seed keeps all its bits."""
    prompts, seeds, flags = (list(column) for column in zip(*rows, strict=True))
    data = parquet({"": pa.array(prompts, pa.string()), "seed": pa.array(seeds, pa.uint64()), "flag": flags})
    found = prompt_file.read_prompt_file(archives.unpack(data, HERE), HERE)
    assert found.header == ("", "seed", "flag")
    assert found.values(0, str) == [p or "" for p in prompts]
    assert found.values(1, prompt_file.seed) == seeds
    assert found.values(2, str) == [str(f) for f in flags]


def test_a_seed_that_pandas_made_a_float_is_read(tmp_path: Path) -> None:
    data = parquet(
        {"prompt": ["a", "b"], "seed": [7.0, float("nan")], "kind": pa.array(["x", "x"]).dictionary_encode()}
    )
    found = prompt_file.read_prompt_file(archives.unpack(gzip.compress(data, mtime=0), HERE), HERE)
    assert found.values(1, prompt_file.seed) == [7, None]
    assert found.values(2, str) == ["x", "x"]


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.csv", "prompt\n")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (gzip.compress(b"prompt\na\n", mtime=0)[:-6], "damaged gzip (is the file truncated?)"),
        (b"\x1f\x8b and more", "damaged gzip"),
        (parquet({"prompt": ["a"]})[:-6], "no readable Parquet file"),
        (b"PAR1", "no readable Parquet file"),
        (parquet({"prompt": ["a"], "image": [b"\x00"]}), "column 'image' holds bytes"),
        (parquet({"prompt": ["a"], "tags": [["x", "y"]]}), "column 'tags' holds list"),
        (zipped(), "is a ZIP archive or a spreadsheet"),
    ],
)
def test_what_cannot_be_read_is_refused_on_one_line(data: bytes, part: str) -> None:
    with pytest.raises(UserError) as error:
        archives.unpack(data, HERE)
    assert part in str(error.value)
    assert str(error.value).startswith("mine: ")
    assert "\n" not in str(error.value)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 1 << 20)
    with pytest.raises(UserError, match="holds more than 1 MiB"):
        archives.unpack(gzip.compress(bytes(2 << 20)), HERE)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(0, 20))
def test_all_members_of_a_gzip_file_are_read(parts: list[bytes], padding: int) -> None:
    """As the library reads them; a parallel compressor writes many."""
    packed = b"".join(map(gzip.compress, parts)) + bytes(padding)
    content = b"x" + b"".join(parts)  # no magic of another archive at the start
    packed = gzip.compress(b"x") + packed
    assert archives.unpack(packed, Path("a.gz")) == content == gzip.decompress(packed)


def test_what_follows_a_gzip_file_and_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="is damaged gzip"):
        archives.unpack(gzip.compress(b"prompt\na\n") + b"more", Path("a.gz"))
    with pytest.raises(UserError, match="truncated"):
        archives.unpack(gzip.compress(b"prompt\na\n") + gzip.compress(b"b\n" * 99)[:-9], Path("a.gz"))
