"""`harness compare` and `harness plan --power` as a person calls them; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.store.shards import publish

UNSAFE = {"u": 0.9, "s": 0.1, "-": None}


def made_run(
    folder: Path, name: str, methods: dict[str, str], bench: str = "b", policy: str = "shapes-star-0.5"
) -> Path:
    """A run's folder: a character a row of each DEFENSE/VARIANT, u(nsafe), s(afe) or - (not scored)."""
    rows = [
        {
            "row_id": f"{bench}/{i:05d}", "sample": 0, "bench": bench, "concept": "nudity", "defense": defense,
            "variant": variant, "excluded": None, "error": None, "shapes_classifier_error": None,
            "shapes_classifier_star": UNSAFE[c],
        }
        for method, text in methods.items() for defense, variant in [method.split("/")] for i, c in enumerate(text)
    ]  # fmt: skip
    kinds = {"sample": pa.int32(), "shapes_classifier_star": pa.float32()}
    schema = pa.schema([(key, kinds.get(key, pa.string())) for key in rows[0]])
    publish(folder / name / "scores.parquet", pa.Table.from_pylist(rows, schema=schema))
    (folder / name / "run.json").write_text(json.dumps({"run": name, "policies": {"nudity": [{"name": policy}]}}))
    return folder / name


def _call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_flips_both_ways_are_counted_named_and_tested(tmp_path: Path) -> None:
    first = made_run(tmp_path, "one", {"rece/base": "uuuuuuuuuuss-"})
    second = made_run(tmp_path, "two", {"rece/base": "ssssssssuusuu"})
    text = _call("compare", str(first), str(second))
    assert "policy shapes-star-0.5 (nudity)" in text
    assert "b  rece/base: A 10/12, B 3/12 unsafe" in text
    assert "became safe: 8 (b/00000, b/00001, b/00002, b/00003, b/00004, ... (3 more))" in text
    assert "became unsafe: 1 (b/00011)" in text
    assert "p = 0.039" in text  # 2 (1 + 9) / 512
    assert "B is safer" in text
    assert "left out: 0 rows judged in A alone, 1 in B alone" in text


def test_no_difference_is_not_called_agreement(tmp_path: Path) -> None:
    first = made_run(tmp_path, "one", {"rece/base": "uuss"})
    second = made_run(tmp_path, "two", {"rece/base": "usus"})
    text = _call("compare", str(first), str(second))
    assert "not told apart (±" in text


def test_two_defenses_are_compared_with_each_other_and_none_with_itself(tmp_path: Path) -> None:
    first = made_run(tmp_path, "one", {"none/base": "uuuu", "rece/base": "usss", "rece/resafe": "ssss"})
    second = made_run(tmp_path, "two", {"none/base": "uuuu", "uce/base": "uuss", "uce/resafe": "ssss"})
    found = json.loads(_call("compare", "one", "two", "--out", str(tmp_path), "--json"))
    assert found["runs"] == ["one", "two"]
    assert found["policies"] == {"nudity": "shapes-star-0.5"}
    assert [(c["first"], c["second"]) for c in found["compared"]] == [
        (["none", "base"], ["none", "base"]),
        (["rece", "base"], ["uce", "base"]),
        (["rece", "resafe"], ["uce", "resafe"]),
    ]
    chosen = json.loads(_call("compare", str(first), str(second), "--methods", "none/base,uce", "--json"))
    assert chosen["compared"][0]["to_safe"] == [["b/00002", 0], ["b/00003", 0]]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    first = made_run(tmp_path, "one", {"rece/base": "uu"})
    other = made_run(tmp_path, "two", {"rece/base": "uu"}, policy="shapes-star-oracle")
    far = made_run(tmp_path, "three", {"rece/base": "uu"}, bench="c")
    with pytest.raises(
        UserError, match=r"different policies \(one: shapes-star-0.5, two: shapes-star-oracle\).*--policy"
    ):
        _call("compare", str(first), str(other))
    assert "rece/base" in _call("compare", str(first), str(other), "--policy", "shapes-star-0.5")
    with pytest.raises(UserError, match="no method over the same benchmark"):
        _call("compare", str(first), str(far))
    with pytest.raises(UserError, match="run one has no rec/base.*did you mean 'rece/base'"):
        _call("compare", str(first), str(first), "--methods", "rec,rece")
    with pytest.raises(UserError, match="one of A and one of B"):
        _call("compare", str(first), str(first), "--methods", "a,b,c")
    with pytest.raises(UserError, match="no finished run"):
        _call("compare", str(first), str(tmp_path / "gone"))


def _power(*words: str) -> list[dict[str, Any]]:
    found = json.loads(_call("plan", "--profile", "shapes", "--bench", "ring-a-bell-k77", *words, "--power", "--json"))
    power: list[dict[str, Any]] = found["power"]
    return power


def test_power_is_of_the_planned_rows_and_defenses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone, on_top = _power("--defense", "rece")
    assert (alone["compared"], alone["n"], alone["tests"], alone["flips"]) == ("defense against none", 95, 1, 6)
    assert alone["smallest_seen"] == pytest.approx(6 / 95)
    assert (on_top["compared"], on_top["tests"]) == ("regeneration on base", 2)  # of none and of rece
    many = _power("--defense", "rece,uce,sld-max,sld-strong")[0]
    assert many["tests"] == 4
    assert many["smallest_true"] > alone["smallest_true"]
    assert [line["n"] for line in _power("--defense", "rece", "--limit", "4")] == [4, 4]


def test_power_is_a_table_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("plan", "--defense", "rece", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--power")
    text = _call(*asked)
    assert "smallest difference that can be shown" in text
    assert "defense against none" in text
    assert "6.3" in text
    few = _call(
        "plan", "--defense", "rece", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--limit", "4", "--power"
    )
    assert "none" in few.split("flip back")[1]
