"""Commands that look at what there is, called in this process; none of them loads a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import Result
from desk import Desk
from typer.testing import CliRunner

from harness import scorers
from harness.cli import app
from harness.errors import UserError
from harness.store.shards import Store, publish


def _call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def _json(*words: str) -> Any:
    done = _call(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_list_names_every_kind_with_a_line_each() -> None:
    found = _json("list")
    assert {"defenses", "datasets", "policies", "profiles", "backbones", "reports", "scorers"} <= set(found)
    assert {"none", "sd-np", "sld-medium", "sld-strong", "sld-max", "uce", "rece"} <= set(found["defenses"])
    assert {"nudenet", "shapes_classifier", "shapes_oracle"} <= set(found["scorers"])
    assert all(text and "\n" not in text for names in found.values() for text in names.values())
    assert "rece" in _call("list", "defenses").stdout


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("benchmarks", "datasets"),
        ("benches", "datasets"),
        ("tables", "reports"),
        ("defense", "defenses"),
        ("scorer", "scorers"),
    ],
)
def test_a_kind_goes_by_other_words_too(word: str, kind: str) -> None:
    assert list(_json("list", word)) == [kind]
    assert _json("list", word) == _json("list", kind)


def test_an_unknown_kind_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'defences'.*did you mean 'defenses'"):
        _call("list", "defences")


def test_describe_shows_the_card_and_its_file() -> None:
    both = _json("describe", "rece")
    assert (both["name"], sorted(c["kind"] for c in both["found"])) == ("rece", ["defense", "policy"])
    found = next(c for c in both["found"] if c["kind"] == "defense")
    assert found["file"].endswith("pipelines/defenses/rece.yaml")
    assert found["mechanism"] == "rece"
    assert "mechanism: rece" in _call("describe", "rece").stdout


@pytest.mark.parametrize(("name", "near"), [("recce", "rece"), ("nudnet", "nudenet")])
def test_describe_of_an_unknown_name_helps(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"'{name}'.*did you mean '{near}'"):
        _call("describe", name)


@pytest.mark.parametrize("stem", scorers.names())
def test_describe_shows_every_scorer_that_list_shows(stem: str) -> None:
    (found,) = (c for c in _json("describe", stem)["found"] if c["kind"] == "scorer")
    assert Path(found["file"]).name == f"{stem}.py"
    assert list(found["columns"]) == list(scorers.columns(stem))
    assert (found["references"] == ["same/base", "none/base"]) is scorers.pair(stem)
    shown = _call("describe", stem).stdout
    assert all(text in shown for text in (found["file"], found["summary"].split()[0], *found["columns"]))


def test_describe_says_a_scorer_s_licence_and_where_its_weights_are() -> None:
    assert "AGPL-3.0" in _call("describe", "nudenet").stdout
    (found,) = _json("describe", "shapes_classifier")["found"]
    assert any(Path(place).is_file() for place in found["weights"])
    (found,) = _json("describe", "dinov2")["found"]
    assert any(place.startswith("facebook/dinov2") for place in found["weights"])


def test_a_plan_says_what_there_is_to_do_and_writes_nothing(desk: Desk) -> None:
    words = (
        "--defense",
        "rece",
        "--bench",
        "ten",
        "--profile",
        "small",
        "--cards",
        str(desk.cards),
        "--store",
        str(desk.store),
    )
    found = _json("plan", *words)
    assert (found["rows"], found["images_to_draw"], found["excluded"]) == (20, 20, 0)
    assert [s["missing_shards"] for s in found["stages"]] == [3, 3, 3, 3]
    assert found["phases"] == [[{"stages": ["generate", "score-shapes_oracle"], "gpu": 0.0}]]
    assert not desk.store.exists()
    assert _json("eval", *words, "--dry-run") == found
    assert found["left_out"] == []
    assert "20 images to draw" in _call("plan", *words).stdout.replace("\n", " ")


def test_diff_names_the_key_that_differs(tmp_path: Path) -> None:
    for name, lam in (("a", 0.5), ("b", 0.6)):
        stage = {"stage": "generate", "fingerprint": name, "key": {"method": {"params": {"lam": lam}}}}
        condition = {"bench": "ten", "defense": "uce", "shards": ["x"], "stages": [stage]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"conditions": [condition]}))
    found = _json("diff", str(tmp_path / "a"), str(tmp_path / "b"))["differences"]
    assert found == [{"stage": "ten/uce/generate", "key": "method.params.lam", "left": 0.5, "right": 0.6}]
    assert _json("diff", str(tmp_path / "a"), str(tmp_path / "a"))["differences"] == []


def test_diff_compares_every_regenerator_s_stages(tmp_path: Path) -> None:
    """Stages of one name, once for each regenerator; the last ones of both runs are alike."""
    for run, iterations in (("a", 300), ("b", 200)):
        drawn = {"stage": "generate", "fingerprint": "g", "key": {"seed": 1}}
        pez = {"stage": "optimise", "fingerprint": f"p{iterations}", "key": {"iterations": iterations}}
        resafe = {"stage": "optimise", "fingerprint": "r", "key": {"iterations": 300}}
        variants = [
            {"variant": "base", "stages": ["generate:g"]},
            {"variant": "pez", "stages": ["generate:g", f"optimise:p{iterations}"]},
            {"variant": "resafe", "stages": ["generate:g", "optimise:r"]},
        ]
        condition = {"bench": "ten", "defense": "uce", "shards": ["x"], "variants": variants}
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.json").write_text(
            json.dumps({"conditions": [{**condition, "stages": [drawn, pez, resafe]}]})
        )
    found = _json("diff", str(tmp_path / "a"), str(tmp_path / "b"))["differences"]
    assert found == [{"stage": "ten/uce/pez/optimise", "key": "iterations", "left": 300, "right": 200}]


def test_diff_of_a_run_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"no finished run at .*reel.*real"):
        _call("diff", str(tmp_path / "reel"), str(tmp_path / "real"))


def test_doctor_says_what_the_paper_profile_lacks(tmp_path: Path) -> None:
    done = _call("doctor", "--profile", "paper", "--data", str(tmp_path), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert any("ring-a-bell-k77" in line for line in found["missing_benchmarks"])
    assert found["ready"] is False


def test_doctor_finds_the_shapes_profile_ready(tmp_path: Path) -> None:
    assert _json("doctor", "--profile", "shapes", "--data", str(tmp_path))["ready"] is True


def _filled(root: Path) -> Store:
    store = Store.open(root)
    table = pa.table({"image": pa.array([b"x" * 5000], pa.binary()), "image_sha256": ["a"]})
    publish(store.path("generate", "f" * 16, "k"), table)
    publish(store.path("score-nudenet", "e" * 16, "k"), pa.table({"a": [1]}))
    return store


def test_the_store_is_listed_and_weighed(tmp_path: Path) -> None:
    _filled(tmp_path / "s")
    listed = _json("store", "ls", "--store", str(tmp_path / "s"))
    assert listed["store"] == str(tmp_path / "s")
    assert [(e["stage"], e["shards"]) for e in listed["entries"]] == [("generate", 1), ("score-nudenet", 1)]
    found = _json("store", "du", "--store", str(tmp_path / "s"))
    assert found["total"] == sum(found["stages"].values()) > 0


def test_prune_asks_and_removes_what_was_named(tmp_path: Path) -> None:
    store = _filled(tmp_path / "s")
    with pytest.raises(UserError, match="say what"):
        _call("store", "prune", "--store", str(store.root))
    with pytest.raises(UserError, match="'score-nudnet'.*did you mean 'score-nudenet'"):
        _call("store", "prune", "--stage", "score-nudnet", "--store", str(store.root))
    refused = CliRunner().invoke(app, ["store", "prune", "--images", "--store", str(store.root)], input="n\n")
    assert refused.exit_code == 1
    assert _json("store", "prune", "--images", "--store", str(store.root))["freed_bytes"] > 0
    _json("store", "prune", "--stage", "score-nudenet", "--store", str(store.root))
    assert [e.stage for e in store.entries()] == ["generate"]


def test_no_store_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store at"):
        _call("store", "ls", "--store", str(tmp_path / "nothing"))


@pytest.mark.parametrize("form", ["terminal", "md", "csv", "json"])
@pytest.mark.parametrize("name", ["table1", "table5"])
def test_a_report_without_runs_says_so_in_every_cell(tmp_path: Path, name: str, form: str) -> None:
    done = _call("report", name, "--out", str(tmp_path), "--format", form)
    assert done.exit_code == 0
    assert "not run" in done.stdout
    assert "95.79" in done.stdout  # the paper's value, as printed


def test_the_shapes_profile_never_shows_the_papers_numbers(tmp_path: Path) -> None:
    assert "95.79" not in _call("report", "table1", "--profile", "shapes", "--out", str(tmp_path)).stdout
