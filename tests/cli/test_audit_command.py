"""`harness audit` as a person calls it: the paper's cards, and tables of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError

TABLE = """method,K77,MMA,UDA
n,95,1000,142
SDv1.4,95.79,95.60,68.31
SAFREE,35.79%,63.40,25.35
+ ReSafe,16.84,8.45,19.80
"""


def _call(*words: str) -> str:
    done = CliRunner().invoke(app, ["audit", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def _json(*words: str) -> Any:
    return json.loads(_call(*words, "--json"))["tables"]


def _csv(folder: Path, text: str, name: str = "mine.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_paper_s_table_is_audited_beside_the_other_tables_of_the_paper() -> None:
    text = _call("table5")
    assert text.startswith("table5: 210 numbers: 194 exact, 3 cut off, 3 pooled, 10 infeasible")
    assert "! mace/resafe, rece/resafe, safree/resafe: numbers look rotated" in text
    assert "! gloce/resafe: 0.02 is no share of 95" in text
    assert "  mace/base: look like means of 3 runs" in text  # no alarm
    assert "! none/resafe: ring-a-bell-k77, ring-a-bell-k16: 29.47 / 26.32 here, 26.32 / 29.47 in table4" in text


def test_json_has_every_reading_and_finding() -> None:
    (found,) = _json("table5")
    assert found["counts"]["exact"] == 194
    assert len(found["readings"]) == 210
    moved = next(f for f in found["findings"] if f["kind"] == "moved")
    assert dict(zip(moved["columns"], moved["holds"], strict=True))["mma-diffusion"] == "unlearndiffatk"
    assert found["alarms"] == sum(f["alarm"] for f in found["findings"])


def test_a_table_of_one_s_own_is_read_with_its_sizes(tmp_path: Path) -> None:
    (found,) = _json(_csv(tmp_path, TABLE))
    (moved,) = found["findings"]
    assert moved["rows"] == ["+ ReSafe"]
    assert dict(zip(moved["columns"], moved["holds"], strict=True)) == {"MMA": "UDA", "UDA": "MMA"}
    assert "SAFREE  K77: 35.79  exact  34/95" in _call(_csv(tmp_path, TABLE), "--readings")


def test_a_clean_table_says_so_and_an_empty_cell_is_not_judged(tmp_path: Path) -> None:
    text = _call(_csv(tmp_path, "m,a\nn,95\nx,1.05\ny,-\n"))
    assert "1 exact, 1 not printed" in text
    assert "every number is a share of its column's n" in text
    assert "!" not in text


def test_two_files_are_held_beside_each_other(tmp_path: Path) -> None:
    here = _csv(tmp_path, "m,a,b\nn,95,95\nx,1.05,2.11\n", "here.csv")
    there = _csv(tmp_path, "m,a,b\nn,95,95\nx,2.11,1.05\n", "there.csv")
    first, second = _json(here, there)
    assert [f["kind"] for f in first["findings"]] == ["exchanged between tables"]
    assert "1.05 / 2.11 here, 2.11 / 1.05 in there" in first["findings"][0]["text"]
    assert "in here" in second["findings"][0]["text"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,a\nx,1.05\ny,1.05\n", "a line that begins with 'n'"),
        ("m,a\nn,many\nx,1.05\n", "n of column 'a' is 'many'"),
        ("m,a\nn,95\nx,about 3\n", "'x' under 'a' is 'about 3', not a percentage"),
        ("m,a\nn,95\nx,101.0\n", "'101.0', not a percentage"),
        ("m,a\nn,95\nx,1.05,2\n", "row 'x' has 2 numbers for 1 columns"),
        ("m,a\nn,95\nx,1.05\nx,2.11\n", "two rows are called 'x'"),
        ("m,a,a\nn,95,95\nx,1.05,1.05\n", "two columns have the same name"),
    ],
)
def test_a_table_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _call(_csv(tmp_path, text))


def test_unknown_names_help(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tabel5'.*did you mean 'table5'"):
        _call("tabel5")
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read"):
        _call(str(tmp_path / "nowhere.csv"))
