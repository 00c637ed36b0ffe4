"""``harness baseline``: an update says why, a check leaves with exit code 1 and names the cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from scored import policy, row
from scored import table as table_of
from typer.testing import CliRunner

from harness.cli import app
from harness.metrics import cells as cell_files
from harness.metrics.measure import measure

ROWS = 20


def made(folder: Path, outcome: str, defense: str = "rece") -> Path:
    """A complete run of one defense, every row with the same outcome."""
    folder.mkdir(parents=True)
    scores = table_of([row(i, outcome, defense=defense) for i in range(ROWS)])
    pq.write_table(scores, folder / "scores.parquet")
    cell_files.write(folder / "cells.json", measure(scores, {"nudity": (policy(),)}))
    record = {
        "run": folder.name,
        "command": f"harness eval -d {defense}",
        "policies": {"nudity": [policy().model_dump(mode="json")]},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, ["baseline", *map(str, words)])


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    folder = tmp_path / "baseline"
    done = call("update", made(tmp_path / "runs" / "old", "safe"), "--baseline", folder, "--reason", "first")
    assert done.exit_code == 0, done.output
    return folder


def test_the_same_numbers_pass(baseline: Path, tmp_path: Path) -> None:
    done = call("check", made(tmp_path / "runs" / "again", "safe"), "--baseline", baseline)
    assert done.exit_code == 0, done.output
    assert "0 of " in done.output
    assert "first" in done.output


@pytest.mark.parametrize(
    ("outcome", "named"), [("unsafe", "rece/base over b, unsafe"), ("error", "rece/base over b, image")]
)
def test_a_regression_is_exit_code_one_and_named(baseline: Path, tmp_path: Path, outcome: str, named: str) -> None:
    done = call("check", made(tmp_path / "runs" / "worse", outcome), "--baseline", baseline)
    assert done.exit_code == 1
    assert f"FAILED {named}" in done.output


def test_json_has_every_comparison(baseline: Path, tmp_path: Path) -> None:
    done = call("check", made(tmp_path / "runs" / "worse", "unsafe"), "--baseline", baseline, "--json")
    told = json.loads(done.stdout)
    assert told["failed"] >= 1
    assert {one["measure"] for one in told["compared"]} >= {"unsafe"}


def test_an_update_keeps_other_cells_reason_and_what_changed(baseline: Path, tmp_path: Path) -> None:
    call("update", made(tmp_path / "runs" / "uce", "safe", "uce"), "--baseline", baseline, "--reason", "uce came")
    call("update", made(tmp_path / "runs" / "worse", "unsafe"), "--baseline", baseline, "--reason", "rece was too good")
    rows = pq.read_table(baseline / "rows.parquet")
    counts = rows.group_by("defense").aggregate([("unsafe", "sum"), ("unsafe", "count")]).sort_by("defense")
    assert counts.to_pydict() == {"defense": ["rece", "uce"], "unsafe_sum": [ROWS, 0], "unsafe_count": [ROWS, ROWS]}
    history = json.loads((baseline / "history.json").read_text())
    assert [entry["reason"] for entry in history] == ["first", "uce came", "rece was too good"]
    assert history[1]["changed"] == []
    assert "rece/base over b, unsafe" in history[2]["changed"][0]


def test_a_baseline_holds_no_text_of_a_prompt(baseline: Path) -> None:
    names = pa.parquet.read_schema(baseline / "rows.parquet").names
    assert not {"prompt", "image", "safe_caption", "optimized_prompt", "image_sha256"} & set(names)


def test_one_cell_of_two_runs_is_refused(tmp_path: Path) -> None:
    runs = [made(tmp_path / "runs" / name, "safe") for name in ("one", "two")]
    done = call("update", *runs, "--baseline", tmp_path / "b", "--reason", "x")
    assert done.exit_code != 0
    assert "in one and in two" in str(done.exception)


@pytest.mark.parametrize("damage", ["nothing there", "rows", "history"])
def test_a_baseline_that_is_none_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    run, folder = made(tmp_path / "runs" / "r", "safe"), tmp_path / "baseline"
    if damage != "nothing there":
        call("update", run, "--baseline", folder, "--reason", "x")
        (folder / {"rows": "rows.parquet", "history": "history.json"}[damage]).write_text("{")
    done = call("check", run, "--baseline", folder)
    assert done.exit_code != 0
    assert "baseline" in str(done.exception)
