"""Rows with images, as the generate stage leaves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from harness.pipeline.stages.images import put
from harness.store.schema import IMAGE


def image(i: int, side: int = 32) -> Any:
    """An image (side, side, 3) uint8 that is one of its own; its first pixel says ``i``."""
    found = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found[0, 0] = i
    return found


def base(count: int = 5, **changed: dict[int, Any]) -> pa.Table:
    """Base rows; ``changed``: column to place to value. An excluded or failed row has no image."""
    entries = []
    for i in range(count):
        entry: dict[str, Any] = {
            "row_id": f"ten/{i:05d}", "sample": 0, "bench": "ten", "concept": "nudity", "prompt": f"a blue circle {i}",
            "seed": 100 + i, "guidance": 4.0, "width": 32, "height": 32, "excluded": None, "profile": "shapes",
            "backbone": "shapes", "defense": "rece", "variant": "base", "error": None,
        }  # fmt: skip
        entry |= {name: places[i] for name, places in changed.items() if i in places}
        if entry["excluded"] is None and entry["error"] is None:
            put(entry, image(i))
        entry |= {name: places[i] for name, places in changed.items() if i in places}
        entries.append(entry)
    return pa.Table.from_pylist(entries, schema=IMAGE)


def beside(rows: pa.Table, schema: pa.Schema, **columns: list[Any]) -> pa.Table:
    """``rows`` with the columns that ``schema`` adds to them; null where none are given."""
    for name in schema.names:
        if name not in rows.column_names:
            values = columns.get(name, [None] * rows.num_rows)
            rows = rows.append_column(schema.field(name), pa.array(values, schema.field(name).type))
    return rows
