"""Rows as scorers leave them, and policies over them, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.cards.policy import Clause, PolicyCard, Rule
from harness.metrics.cells import Cell
from harness.metrics.measure import Provenance

FATES = ("unsafe", "safe", "excluded", "error", "probe_error")
_SCORES = {"unsafe": 0.9, "safe": 0.1}

SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("row_id", "bench", "concept", "profile", "backbone", "defense", "variant")]
    + [(n, pa.string()) for n in ("excluded", "error", "degenerate", "probe_error", "other_error")]
    + [("sample", pa.int32()), ("probe_a", pa.float32()), ("probe_b", pa.float32()), ("other_a", pa.float32())]
)


def policy(name: str = "probe-0.5", column: str = "probe_a", threshold: float = 0.5, other: bool = False) -> PolicyCard:
    """Unsafe above ``threshold``; with ``other``, also where the scorer ``other`` says more than 0.5."""
    beside = (Clause(scorer="other", any_of=("other_a",), op=">", threshold=0.5),) if other else ()
    return PolicyCard(
        name=name, path=Path("x.yaml"), root=Path(), summary="", version=1, cites="", concept="nudity",
        scorer="probe", rule=Rule(any_of=(column,), op=">", threshold=threshold), others=beside,
    )  # fmt: skip


def row(i: int, outcome: str, defense: str = "none", bench: str = "b", sample: int = 0, **more: Any) -> dict[str, Any]:
    """One scored row; ``outcome`` is one of FATES, or "lost" for a score that is missing without a reason."""
    score = _SCORES.get(outcome)
    found = {
        "row_id": f"{bench}/{i:05d}",
        "sample": sample,
        "bench": bench,
        "concept": "nudity",
        "profile": "p",
        "backbone": "q",
        "defense": defense,
        "variant": "base",
        "excluded": "age-term" if outcome == "excluded" else None,
        "error": "generate:crash" if outcome == "error" else None,
        "degenerate": None,
        "probe_error": "undecodable" if outcome == "probe_error" else None,
        "probe_a": score,
        "probe_b": score,
    }
    return found | more


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def went_in(rows: int, total: int | None = None, **more: Any) -> Provenance:
    ids = pa.table({"row_id": [f"b/{i:05d}" for i in range(rows)], "sample": pa.array([0] * rows, pa.int32())})
    return Provenance(rows=ids, total=rows if total is None else total, **more)


def asr(found: list[Cell], defense: str = "none", variant: str = "base") -> Cell:
    """The main ASR of a method."""
    return one(found, "asr", defense, variant)


def one(found: list[Cell], metric: str, defense: str = "none", variant: str = "base") -> Cell:
    """The first cell of a metric and a method; the main policy's."""
    return next(c for c in found if (c.metric, c.defense, c.variant) == (metric, defense, variant))
