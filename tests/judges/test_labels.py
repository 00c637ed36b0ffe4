"""`harness judge export|import --task unsafe`: labels of single images, and the rates that they correct."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_run import MadeRun
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.judges import human_form
from harness.metrics.corrections import of_run
from harness.metrics.labelling import allocation
from harness.metrics.true_asr import Labels, corrected
from harness.shapes import world
from harness.store.shards import publish

ROWS = 80
PLACES = (("none", "base"), ("rece", "base"), ("rece", "resafe"))
POLICY = "shapes-star-0.5"


def truth(bench: str, i: int, defense: str, variant: str) -> bool:
    """Whether the made run's image shows a star: known from how it was drawn, not read from pixels."""
    scene = world.sample_scene(random.Random(f"{bench}{i}{defense}{variant}"))
    return any(thing.shape == "star" for thing in scene.objects)


def score(bench: str, i: int, defense: str, variant: str) -> float | None:
    """A detector that misses a fifth of the stars and sees some that are not there; row 3 has no score."""
    if i == 3:
        return None
    rng = random.Random(f"noise{bench}{i}{defense}{variant}")
    unsafe = truth(bench, i, defense, variant)
    flagged = rng.random() < (0.8 if unsafe else 0.1)
    return rng.uniform(0.5, 1) if flagged else rng.uniform(0, 0.5)


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    run = MadeRun(tmp_path).add("ring", "nudity", ROWS, PLACES)
    rows = [
        {
            "row_id": f"ring/{i:05d}", "sample": 0, "bench": "ring", "concept": "nudity", "defense": defense,
            "variant": variant, "excluded": None, "error": None, "shapes_classifier_error": None,
            "shapes_classifier_star": score("ring", i, defense, variant),
        }
        for defense, variant in PLACES for i in range(ROWS)
    ]  # fmt: skip
    kinds = {"sample": pa.int32(), "shapes_classifier_star": pa.float32()}
    schema = pa.schema([(key, kinds.get(key, pa.string())) for key in rows[0]])
    publish(run.folder / "scores.parquet", pa.Table.from_pylist(rows, schema=schema))
    run.record["policies"] = {"nudity": [{"name": POLICY}]}
    (run.folder / "run.json").write_text(json.dumps(run.record))
    return run


def _call(*words: str) -> str:
    done = CliRunner().invoke(app, ["judge", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def export(made: MadeRun, out: Path, *words: str) -> dict[str, Any]:
    """The key of a form of labels."""
    _call("export", str(made.folder), "--task", "unsafe", "--out", str(out), "--store", str(made.store), *words)
    key: dict[str, Any] = json.loads(out.with_name(f"{out.stem}.key.json").read_text())
    return key


def answer(key: dict[str, Any], path: Path, rater: str = "a", wrong: tuple[str, ...] = ()) -> Path:
    """What somebody who sees what was drawn answers; nothing to the questions ``wrong``."""
    said = {}
    for name, item in key["items"].items():
        i = int(item["row_id"].rpartition("/")[2])
        yes = truth(item["bench"], i, *item["second"].split("/"))
        said[name] = None if name in wrong else "yes" if yes else "no"
    answers = {"format": human_form.ANSWERS, "version": 1, "form": key["form"], "rater": rater, "answers": said}
    path.write_text(json.dumps(answers))
    return path


def test_labels_are_drawn_apart_from_flagged_and_unflagged_of_every_method(made: MadeRun, tmp_path: Path) -> None:
    key = export(made, tmp_path / "form.html", "--n", "30")
    assert [(g["bench"], g["method"]) for g in key["groups"]] == [("ring", f"{d}/{v}") for d, v in PLACES]
    for group in key["groups"]:
        mine = [item for item in key["items"].values() if item["second"] == group["method"]]
        flags = [score("ring", i, *group["method"].split("/")) for i in range(ROWS) if i != 3]
        assert group["n"] == group["prompts"] == ROWS - 1  # the row without a score has no verdict
        assert group["flagged"] == sum(s > 0.5 for s in flags)  # type: ignore[operator]
        counts = allocation(group["flagged"], group["n"], 30)
        assert sum(item["flagged"] for item in mine) == counts.flagged
        assert len(mine) == 30
        assert len({item["row_id"] for item in mine}) == 30
        assert {item["band"] for item in mine if not item["flagged"]} == {0, 1, 2}
    both = key["groups"][1]["both_flagged"]["rece/resafe"]
    scores = [[score("ring", i, "rece", v) or 0 for v in ("base", "resafe")] for i in range(ROWS)]
    assert both == sum(min(pair) > 0.5 for pair in scores)


def test_the_form_asks_about_the_harm_and_shows_no_verdict(made: MadeRun, tmp_path: Path) -> None:
    key = export(made, tmp_path / "form.html", "--n", "10")
    page = (tmp_path / "form.html").read_text()
    assert key["question"].startswith("Does this image show any star")
    assert "flagged" not in page
    assert POLICY not in page
    assert "rece" not in page


def test_the_same_seed_draws_the_same_rows_and_another_one_others(made: MadeRun, tmp_path: Path) -> None:
    def rows(name: str, seed: str) -> set[tuple[str, str]]:
        key = export(made, tmp_path / f"{name}.html", "--n", "20", "--seed", seed)
        return {(item["row_id"], item["second"]) for item in key["items"].values()}

    assert rows("a", "1") == rows("b", "1") != rows("c", "2")


def test_import_prints_what_is_corrected_beside_what_is_not(made: MadeRun, tmp_path: Path) -> None:
    key = export(made, tmp_path / "form.html", "--n", "40")
    words = ("import", str(answer(key, tmp_path / "a.json")), "--key", str(tmp_path / "form.key.json"))
    found = json.loads(_call(*words, "--json"))
    for entry, (defense, variant) in zip(found["corrected"], PLACES, strict=True):
        true = sum(truth("ring", i, defense, variant) for i in range(ROWS) if i != 3) / (ROWS - 1)
        labels = Labels(**entry["labels"])
        assert (entry["rate"]["value"], entry["rate"]["low"], entry["rate"]["high"]) == tuple(corrected(labels))
        assert entry["rate"]["low"] <= true <= entry["rate"]["high"]
        assert labels.labelled == 40
        assert entry["raw"][0] == labels.flagged / (ROWS - 1)
    assert [(c["second"], c["first"]) for c in found["compared"]] == [
        ("rece/base", "none/base"),
        ("rece/resafe", "rece/base"),
    ]
    assert 0 <= found["pooling"]["ring"]["p_flagged"] <= 1
    text = _call(*words)
    assert text.count("  uncorrected  ") == text.count("  corrected    ") == 3
    assert "of the labelled flagged images are unsafe" in text
    assert "rece/resafe less rece/base, corrected:" in text
    assert "exact test of equal shares" in text


def test_answers_that_are_not_there_are_lost_and_said(made: MadeRun, tmp_path: Path) -> None:
    key = export(made, tmp_path / "form.html", "--n", "20", "--methods", "none/base")
    skipped = tuple(list(key["items"])[:3])
    answers = answer(key, tmp_path / "a.json", wrong=skipped)
    found = json.loads(_call("import", str(answers), "--key", str(tmp_path / "form.key.json"), "--json"))
    (entry,) = found["corrected"]
    assert (entry["lost"], Labels(**entry["labels"]).labelled) == (3, 17)
    assert found["compared"] == []
    assert found["pooling"] == {}


def test_without_labels_of_one_verdict_there_is_no_corrected_rate(made: MadeRun, tmp_path: Path) -> None:
    key = export(made, tmp_path / "form.html", "--n", "20", "--methods", "none/base")
    flagged = tuple(name for name, item in key["items"].items() if item["flagged"])
    answers = answer(key, tmp_path / "a.json", wrong=flagged)
    text = _call("import", str(answers), "--key", str(tmp_path / "form.key.json"))
    assert "no corrected rate: none of the" in text
    assert "  corrected  " not in text


def test_corrections_are_read_back_from_the_run_s_folder(made: MadeRun, tmp_path: Path) -> None:
    assert of_run(made.folder) == {}
    key = export(made, tmp_path / "form.html", "--n", "20")
    _call("import", str(answer(key, tmp_path / "a.json")), "--key", str(tmp_path / "form.key.json"))
    found = of_run(made.folder)
    assert set(found) == {("ring", f"{d}/{v}", POLICY) for d, v in PLACES}
    one = found["ring", "none/base", POLICY]
    assert one.rate is not None
    assert one.to_json() == type(one).from_json(json.loads(json.dumps(one.to_json()))).to_json()
    next(made.folder.glob("judges/*.json")).write_text('{"corrected": [{}]}')
    with pytest.raises(UserError, match="not the labels of a run"):
        of_run(made.folder)


def test_a_policy_whose_scores_are_not_there_is_named(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the column 'shapes_oracle_star'"):
        export(made, tmp_path / "form.html", "--policy", "shapes-star-oracle")
