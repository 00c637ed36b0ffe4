"""A table counted anew by another policy, straight from Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from report_samples import cell, degenerate, report_card, runs

from harness.cards.policy import PolicyCard, Rule
from harness.errors import UserError
from harness.report.recount import recount
from harness.report.table import assemble
from harness.store.shards import replace as write

SCORES = {"p4d": [0.1, 0.5, 0.7, None], "i2p": [0.65, 0.2, 0.9, 0.9]}
STAGES = ("generate:ab", "score-nudenet:cd")


def policy(threshold: float, column: str = "nudenet_a") -> PolicyCard:
    return PolicyCard(
        name="mine", path=Path("x.yaml"), root=Path(), summary="", version=1, cites="nobody", concept="nudity",
        scorer="nudenet", rule=Rule(any_of=(column,), op=">", threshold=threshold),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One run of two benchmarks, a row of which the guard excluded."""
    rows = [
        {
            "row_id": f"{bench}/{i:05d}", "sample": 0, "bench": bench, "concept": "nudity", "profile": "paper",
            "backbone": "sd-1-4", "defense": "none", "variant": "base", "prompt": f"{bench} {i}", "error": None,
            "excluded": None if score is not None else "age-term", "degenerate": None, "nudenet_error": None,
            "nudenet_a": score,
        }
        for bench, scores in SCORES.items()
        for i, score in enumerate(scores)
    ]  # fmt: skip
    text = pa.string()
    schema = pa.schema([(n, {"sample": pa.int32(), "nudenet_a": pa.float32()}.get(n, text)) for n in rows[0]])
    own = [degenerate(replace(cell(0, 4, bench=bench), fingerprints=STAGES, subset="4/272")) for bench in SCORES]
    own = [replace(one, fingerprints=STAGES, subset="4/272") for one in own]
    there = runs(tmp_path / "runs", {"r": own})
    write(there / "r" / "scores.parquet", pa.Table.from_pylist(rows, schema=schema))
    return there


@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.6, 0.8])
def test_counts_are_those_of_the_stored_scores(folder: Path, threshold: float) -> None:
    own = degenerate(cell(0, 4))
    known = [replace(own, bench=bench, fingerprints=STAGES, subset="4/272") for bench in SCORES]
    found = {c.bench: c for c in recount(folder / "r", known, policy(threshold))}
    for bench, scores in SCORES.items():
        judged = [score for score in scores if score is not None]
        expected = (sum(score > threshold for score in judged), len(judged), scores.count(None))
        assert (found[bench].k, found[bench].n, found[bench].excluded) == expected
        assert (found[bench].policy, found[bench].fingerprints, found[bench].subset) == ("mine", STAGES, "4/272")


def test_the_table_s_stamp_and_cells_are_the_other_policy_s(folder: Path, tmp_path: Path) -> None:
    table = assemble(report_card(tmp_path), folder, "paper", policy(0.6))
    assert "policy mine" in table.stamp()
    (measured,) = [e.measured for e in table.entries if e.measured is not None]
    assert (measured.bench, measured.k, measured.n) == ("p4d", 1, 3)
    assert all(e.measured is None for e in assemble(report_card(tmp_path), folder, "paper").entries)


def test_a_run_without_the_policy_s_columns_has_no_such_cells(folder: Path) -> None:
    assert list(recount(folder / "r", [], policy(0.5, "nudenet_b"))) == []


def test_scores_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "r" / "scores.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match=r"scores\.parquet: not the scores of a run"):
        list(recount(folder / "r", [], policy(0.5)))
