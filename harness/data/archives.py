"""A user's own copy of a prompt file as the CSV or JSON that loaders read: out of gzip, or out of Parquet.

Benchmarks travel compressed, and the Hugging Face hub serves its data sets as Parquet too.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from pathlib import Path
from typing import Any

from harness.cards.yaml_file import show
from harness.data.prompt_file import LARGEST
from harness.errors import UserError


def unpack(data: bytes, path: Path) -> bytes:
    """The text file that ``data`` holds; ``data`` itself where it is neither gzip nor Parquet.

    Out of gzip it is the published file, byte for byte. Out of Parquet it is a CSV with the same columns and cells,
    an empty cell for a null: never the published bytes, so known by columns and rows only.

    Args:
        data: a file's bytes.
        path: what errors call it.

    Raises:
        UserError: damaged, too large, another kind of archive, a column that a CSV cannot hold.
    """
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(data, path)
    if data.startswith(b"PAR1"):
        return _from_parquet(data, path)
    if data.startswith(b"PK\x03\x04"):
        raise UserError(f"{show(path)}: is a ZIP archive or a spreadsheet; unpack it, or save it as CSV")
    return data


def _gunzip(data: bytes, path: Path) -> bytes:
    """All members of a gzip file, one after another, as `cat a.gz b.gz` and parallel compressors make them."""
    content = b""
    while data:
        stream = zlib.decompressobj(wbits=31)
        try:
            content += stream.decompress(data, LARGEST + 1 - len(content))
        except zlib.error as error:
            raise UserError(f"{show(path)}: is damaged gzip: {error}") from None
        if len(content) > LARGEST:
            raise UserError(f"{show(path)}: holds more than {LARGEST >> 20} MiB, which is no file of prompts")
        if not stream.eof:
            raise UserError(f"{show(path)}: is damaged gzip (is the file truncated?)")
        data = stream.unused_data.lstrip(b"\0")  # tapes and some tools pad a file with zeros
    return content


def _from_parquet(data: bytes, path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{show(path)}: is no readable Parquet file: {str(error).splitlines()[0]}") from None
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for name, cells in columns.items():
        strange = next((cell for cell in cells if not isinstance(cell, str | int | float | None)), None)
        if strange is not None:
            raise UserError(f"{show(path)}: column {name!r} holds {type(strange).__name__}, which a CSV cannot hold")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)
