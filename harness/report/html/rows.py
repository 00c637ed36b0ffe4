"""A run's rows as typed columns, packed into one string: what the page's table and browser of rows read.

Verdicts, the scores that decide them, other numbers, codes. A number is kept to a step that its column states (1/10000
of scores between 0 and 1); verdicts come from the exact scores, which stay in scores.parquet. Text that could hold a
prompt or a caption has no column; see ``texts``.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.metrics.cells import Policies, ResultGroup
from harness.metrics.policies import verdicts
from harness.store.schema import IMPORTED

BYTES = 6_000_000  # of all columns before compression; further ones are left out, and named
NO_VERDICT = 2
TEXTS = ("prompt", "unsafe_caption", "unsafe_components", "safe_caption", "optimized_prompt")
_CODES = (
    "excluded", "error", "degenerate", "defense_note", "prompt_note", "regen_note", "regen_backbone", "vlm",
)  # fmt: skip
_LINEAGE = ("seed", "guidance", "alpha", "lam", "tokens", "iterations", "cosine", "already_safe")
_SKIPPED = {"sample", "width", "height"}
_STEP = 1e-4  # finest step that a number is kept to
_EXACT = 2.0**53  # whole numbers beyond have no exact float: they are left to scores.parquet
_LEVELS = 65_534  # of 16 bits; the last is for no value


class Column(NamedTuple):
    """One column of all rows, as the page decodes it."""

    about: dict[str, Any]  # "name", "kind" and what decodes it
    values: NDArray[Any]  # little-endian; the type's largest value: null


class Packed(NamedTuple):
    """The rows of a page."""

    about: dict[str, Any]  # parts, row ids and columns
    data: str  # base64 of the zlib-compressed columns, one behind another
    left_out: tuple[str, ...]  # columns for which there was no room


def pack(parts: Sequence[ResultGroup], policies: Policies, named: bool = False, most: int = BYTES) -> Packed:
    """All rows, part after part.

    Args:
        parts: of the run, in its order.
        policies: by concept, the main one first.
        named: call rows of imported images by their files' names; else by numbers.
        most: bytes that the columns may take.
    """
    rows = pa.concat_tables([part.rows for part in parts])
    ids, keys = _keys(parts, named)
    wanted = [Column({"name": "row", "kind": "key"}, keys), *_verdicts(parts, policies), *_plain(rows, policies)]
    columns, left_out, size = [], [], 0
    for column in wanted:
        if size + column.values.nbytes > most:
            left_out.append(column.about["name"])
            continue
        columns.append(column)
        size += column.values.nbytes
    starts = np.cumsum([0, *(part.rows.num_rows for part in parts)])
    about = {
        "parts": [
            {"defense": p.defense, "variant": p.variant, "bench": p.bench, "concept": p.concept,
             "policies": [q.name for q in policies[p.concept] if q.unit == "image"], "start": int(start),
             "rows": p.rows.num_rows}
            for p, start in zip(parts, starts, strict=False)
        ],
        "ids": ids,
        "columns": [{**column.about, "type": column.values.dtype.str.strip("<|")} for column in columns],
        "rows": rows.num_rows,
    }  # fmt: skip
    data = b"".join(column.values.tobytes() for column in columns)
    return Packed(about, base64.b64encode(zlib.compress(data, 6)).decode(), tuple(left_out))


def texts(parts: Sequence[ResultGroup]) -> str:
    """Prompts and captions of all rows, in the order of ``pack``: base64 of compressed JSON, each text once.

    Only for a page that was asked to hold them.
    """
    rows = pa.concat_tables([part.rows for part in parts])
    packed: dict[str, Any] = {}
    for name in TEXTS:
        if name in rows.column_names and rows[name].null_count < rows.num_rows:
            values = rows[name].to_pylist()
            joined = ["; ".join(v) if isinstance(v, list) else v for v in values]
            distinct = list(dict.fromkeys(v for v in joined if v is not None))
            numbers = {value: i for i, value in enumerate(distinct)}
            packed[name] = {"texts": distinct, "rows": [None if v is None else numbers[v] for v in joined]}
    text = json.dumps(packed, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def _keys(parts: Sequence[ResultGroup], named: bool) -> tuple[list[str], NDArray[Any]]:
    """The names of rows, each once, and which one each row has: rows of several methods share theirs."""
    numbers: dict[str, int] = {}
    hidden: set[int] = set()
    keys: list[int] = []
    for part in parts:
        ids, samples = part.rows["row_id"].to_pylist(), part.rows["sample"].to_pylist()
        names = (f"{i} #{s}" if s else i for i, s in zip(ids, samples, strict=True))
        own = [numbers.setdefault(name, len(numbers)) for name in names]
        keys += own
        if part.defense == IMPORTED and not named:
            hidden.update(own)
    shown = [f"image {i + 1}" if i in hidden else name for i, name in enumerate(numbers)]
    return shown, np.asarray(keys, "<u4")


def _verdicts(parts: Sequence[ResultGroup], policies: Policies) -> Iterator[Column]:
    """By policy whether each row is unsafe, and the score that its first rule asks for."""
    names = dict.fromkeys(q.name for p in parts for q in policies[p.concept] if q.unit == "image")
    cards = {q.name: q for chosen in policies.values() for q in chosen}
    for name in names:
        given, level = [], []
        for part in parts:
            if any(q.name == name for q in policies[part.concept]):
                unsafe = verdicts(cards[name], part.rows)
                given.append(np.asarray(pc.fill_null(unsafe.cast(pa.uint8()), NO_VERDICT)))
                level.append(_level(part.rows, cards[name].rule.any_of))
            else:
                given.append(np.full(part.rows.num_rows, NO_VERDICT, np.uint8))
                level.append(np.full(part.rows.num_rows, np.nan))
        rule = cards[name].rule
        yield Column({"name": name, "kind": "verdict", "op": rule.op, "threshold": rule.threshold},
                     np.concatenate(given).astype("u1"))  # fmt: skip
        if len(rule.any_of) > 1:  # a single column stands among the numbers
            column = _number(highest(name), np.concatenate(level))
            if column is not None:
                yield column


def highest(policy: str) -> str:
    """What the column of the highest score that a policy's first rule asks for is called."""
    return f"{policy}: highest score"


def _level(rows: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    """The highest of some columns; NaN where a row has none of them."""
    columns = np.stack([_floats(rows[name]) for name in names])
    return np.asarray(np.fmax.reduce(columns), np.float64)


def _plain(rows: pa.Table, policies: Policies) -> Iterator[Column]:
    """Codes, lineage, then every scorer's numbers: those that policies ask first, raw labels last."""
    for name in _CODES:
        if name in rows.column_names and (column := _code(name, rows[name])) is not None:
            yield column
    asked = [
        c for chosen in policies.values() for q in chosen for r in q.clauses if len(r.any_of) == 1 for c in r.any_of
    ]
    pairs = [name for name in rows.column_names if "@" in name]
    first = dict.fromkeys([*_LINEAGE, *asked, *pairs])
    order = dict.fromkeys([*first, *rows.column_names])
    for name in order:
        if name not in rows.column_names or name in _SKIPPED:
            continue
        kind = rows.schema.field(name).type
        if name.partition("@")[0].endswith("_error"):
            column = _code(name, rows[name])
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            column = _number(name, _floats(rows[name]), boolean=pa.types.is_boolean(kind))
        else:
            continue
        if column is not None:
            yield column if name in first or column.about["kind"] == "code" else _raw(column)


def _raw(column: Column) -> Column:
    """A score that no policy of the run asks and no pair stands behind: shown on request."""
    return column._replace(about={**column.about, "raw": True})


def _code(name: str, column: pa.ChunkedArray) -> Column | None:
    """Words of which there are few; None where no row has one."""
    if column.null_count == len(column):
        return None
    coded = column.combine_chunks().dictionary_encode()
    words = coded.dictionary.to_pylist()
    kind = "u1" if len(words) < 255 else "<u2"
    if len(words) >= 65_535:
        return None
    numbers = np.asarray(coded.indices.fill_null(np.iinfo(kind).max))
    return Column({"name": name, "kind": "code", "words": words}, numbers.astype(kind))


def _number(name: str, values: NDArray[np.float64], *, boolean: bool = False) -> Column | None:
    """Numbers in the fewest bytes that tell their steps apart; None where no row has one."""
    there = np.isfinite(values)
    if not there.any():
        return None
    low, high = float(values[there].min()), float(values[there].max())
    if (values[there] == np.rint(values[there])).all():
        if max(abs(low), abs(high)) >= _EXACT:
            return None
        if high - low >= 2**32 - 1:
            return Column({"name": name, "kind": "float"}, values.astype("<f8"))
        step, digits = 1.0, 0
    else:
        digits = max(0, min(round(-math.log10(_STEP)), -math.ceil(math.log10(max((high - low) / _LEVELS, 1e-300)))))
        step = 10.0**-digits
        if (high - low) / step > _LEVELS:  # too wide for steps: as it is
            return Column({"name": name, "kind": "float"}, values.astype("<f4"))
    base = math.floor(low / step)
    levels = np.where(there, np.rint(np.where(there, values, low) / step) - base, 0)
    kind = next(k for k in ("u1", "<u2", "<u4") if levels.max() < np.iinfo(k).max)
    packed = levels.astype(kind)
    packed[~there] = np.iinfo(kind).max
    return Column({"name": name, "kind": "boolean" if boolean else "number", "base": base, "digits": digits}, packed)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """As float64, NaN for null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
