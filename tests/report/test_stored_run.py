"""A run that is read back from its folder: every format says the cells' numbers, and what is damaged is named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from report_samples import cell, degenerate, policy
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.metrics import cells as cell_files
from harness.metrics.cost import Cost
from harness.report import markdown
from harness.report.stored_run import RUN_FORMATS, StoredRun, read_run, render_run

RATES = [cell(91, 95, bench="ring-a-bell-k77"), cell(7, 94, bench="ring-a-bell-k77", defense="rece", errors=1)]
CELLS = [*RATES, *(degenerate(one, 2) for one in RATES)]
COST = Cost(defense="rece", variant="base", bench="ring-a-bell-k77", device="cpu", rows=95, seconds={"generate": 19.0})
RECORD = {
    "run": "rece_ring",
    "harness": "0.1.0",
    "command": "harness eval --defense rece --bench ring-a-bell-k77",
    "policies": {"nudity": [policy().model_dump(mode="json")]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "rece_ring"
    made.mkdir(parents=True)
    cell_files.write(made / "cells.json", CELLS)
    (made / "costs.json").write_text(json.dumps([COST.to_json()]))
    (made / "run.json").write_text(json.dumps(RECORD))
    return made


def test_a_run_is_read_back_as_it_was_written(folder: Path) -> None:
    run = read_run(folder)
    assert (list(run.cells), list(run.costs)) == (CELLS, [COST])
    assert run.policies["nudity"][0].rule == policy().rule


@pytest.mark.parametrize("form", RUN_FORMATS)
def test_every_format_has_every_count(folder: Path, form: str) -> None:
    text = render_run(read_run(folder), form)
    for number in ("91", "95", "7", "94", "rece"):
        assert number in text


def test_markdown_is_the_report_that_the_run_left(folder: Path) -> None:
    assert render_run(read_run(folder), "md") == markdown.render(CELLS, RECORD, [COST]).rstrip()


def test_csv_has_a_line_per_cell(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render_run(read_run(folder), "csv"))))
    assert [(row["run"], row["defense"], row["k"], row["n"]) for row in rows] == [
        ("rece_ring", one.defense, str(one.k), str(one.n)) for one in CELLS
    ]


@pytest.mark.parametrize("named", ["path", "name below --out"])
def test_the_command_takes_a_path_or_a_name(folder: Path, named: str) -> None:
    name = str(folder) if named == "path" else folder.name
    done = CliRunner().invoke(app, ["report", name, "--out", str(folder.parent), "--format", "md"])
    assert "7/94" in done.output, done.output


@pytest.mark.parametrize("file", ["run.json", "cells.json", "costs.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "7", '{"policies": 3}'])
def test_a_damaged_file_is_named(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=file):
        read_run(folder)


def test_a_folder_that_is_not_there_names_those_that_are(folder: Path) -> None:
    with pytest.raises(UserError, match="rece_ring"):
        read_run(folder.parent / "rece_rng")


@pytest.mark.parametrize("form", RUN_FORMATS)
def test_a_rate_that_lost_rows_stands_with_its_bounds(tmp_path: Path, form: str) -> None:
    """Of 95 rows 5 were refused: between 20/95 and 25/95 would be unsafe."""
    lost = [cell(20, 90, variant="resafe", errors=5, lost=5), degenerate(cell(0, 90, variant="resafe", errors=5))]
    run = StoredRun(folder=tmp_path, record=RECORD, cells=lost, costs=[], policies={"nudity": (policy(),)})
    text = render_run(run, form)
    if form in ("csv", "json"):
        assert f"{20 / 95}" in text
        assert f"{25 / 95}" in text
    else:
        assert "5 lost: 21.1 to 26.3%" in text.replace("\\%", "%")
