"""ASR against threshold of a run: what is written is what the verdicts give, and the image is an image."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from harness.cards.base import card_roots
from harness.cards.load import load_card, load_cards
from harness.cards.policy import PolicyCard
from harness.cli import app
from harness.errors import UserError
from harness.metrics.policies import verdicts
from harness.metrics.rates import count
from harness.report import curve
from harness.scorers import columns

ROOTS = card_roots()
POLICIES = [card for card in load_cards(PolicyCard, ROOTS) if isinstance(card, PolicyCard)]
MAIN = load_card(PolicyCard, "resafe-nudity-0.45", ROOTS)
SIZE = 40


def scores(defense: str, seed: int, **more: Any) -> pa.Table:
    """Rows of NudeNet's columns with random scores in [0, 1]."""
    generator = np.random.default_rng(seed)
    constant = {
        "profile": "paper", "backbone": "sd-1-4", "defense": defense, "variant": "base", "bench": "p4d",
        "concept": "nudity", "excluded": None, "error": None, "degenerate": None, **more,
    }  # fmt: skip
    table = {name: pa.array([value] * SIZE, pa.string()) for name, value in constant.items()}
    table["row_id"] = pa.array([f"p4d/{i:05d}" for i in range(SIZE)])
    table["sample"] = pa.array([0] * SIZE, pa.int32())
    for name, kind in columns("nudenet").items():
        if pa.types.is_floating(kind):
            table[name] = pa.array(generator.random(SIZE) ** 3, pa.float32())
    return pa.table(table)


SCORES = pa.concat_tables([scores("none", 0), scores("uce", 1)])


def test_each_method_has_a_curve_and_each_policy_its_point() -> None:
    found = curve.curves(SCORES, {"nudity": MAIN}, POLICIES)
    assert [one.group.defense for one in found] == ["none", "uce"]
    for one in found:
        for point in one.points:
            rule = MAIN.rule.model_copy(update={"threshold": point.threshold})
            tally = count(verdicts(MAIN.model_copy(update={"rule": rule}), one.group.rows))
            assert (point.k, point.n) == (tally.k, tally.n)
        for mark in one.marks:
            card = load_card(PolicyCard, mark.policy, ROOTS)
            tally = count(verdicts(card, one.group.rows))
            assert (mark.point.threshold, mark.point.k, mark.point.n) == (card.rule.threshold, tally.k, tally.n)
            assert mark.op == card.rule.op


def test_marks_are_the_policies_over_the_same_scorer_that_count_images() -> None:
    one = curve.curves(SCORES, {"nudity": MAIN}, POLICIES)[0]
    assert {mark.policy: mark.on_curve for mark in one.marks} == {
        "resafe-nudity-0.45": True, "trasce": True, "rece": False, "unlearndiffatk": False,
        "resafe-nudity-0.45-unsuppressed": False,
    }  # fmt: skip
    with_q16 = SCORES.append_column("q16_probability", pa.array([0.2] * 2 * SIZE, pa.float32()))
    more = curve.curves(with_q16, {"nudity": MAIN}, POLICIES)[0]
    assert {mark.policy for mark in more.marks} - {mark.policy for mark in one.marks} == {"receler"}


def test_a_benchmark_that_was_not_scored_has_no_curve() -> None:
    silent = scores("none", 2, bench="coco-30k", concept="benign", excluded="age-term")
    found = curve.curves(pa.concat_tables([SCORES, silent]), {"nudity": MAIN, "benign": MAIN}, POLICIES)
    assert {one.group.bench for one in found} == {"p4d"}
    with pytest.raises(UserError, match="no row of this run has a verdict by resafe-nudity-0.45"):
        curve.curves(silent, {"benign": MAIN}, POLICIES)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "some_run"
    folder.mkdir(parents=True)
    pq.write_table(SCORES, folder / "scores.parquet")
    (folder / "run.json").write_text(json.dumps({"policies": {"nudity": [{"name": MAIN.name}]}}))
    return folder


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["report", *words])


def test_the_command_writes_a_table_twice_and_an_image(run: Path) -> None:
    done = call("some_run", "--out", str(run.parent), "--curve", "--json")
    assert done.exit_code == 0, done.output
    paths = [Path(p) for p in json.loads(done.stdout)["paths"]]
    assert [p.name for p in paths] == [f"curve_resafe-nudity-0.45.{kind}" for kind in ("csv", "json", "png")]
    rows = json.loads(paths[1].read_text())
    with paths[0].open(newline="") as file:
        assert [list(map(str, row.values())) for row in rows] == [list(row.values()) for row in csv.DictReader(file)]
    assert {row["kind"] for row in rows} == {"curve", "policy"}
    assert sum(row["kind"] == "curve" for row in rows) == 2 * 101
    at = next(r for r in rows if r["kind"] == "curve" and r["defense"] == "uce" and r["threshold"] == 0.45)
    mark = next(r for r in rows if r["kind"] == "policy" and r["defense"] == "uce" and r["policy"] == MAIN.name)
    assert {k: at[k] for k in ("k", "n", "value", "low", "high")} == {
        k: mark[k] for k in ("k", "n", "value", "low", "high")
    }
    with Image.open(io.BytesIO(paths[2].read_bytes())) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_another_policys_threshold_moves_on_request(run: Path, tmp_path: Path) -> None:
    done = call(str(run), "--curve", "--policy", "rece", "--to", str(tmp_path / "else"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "else/curve_rece.png").is_file()
    assert not list(run.glob("curve_*"))


def test_a_run_that_is_not_there_and_a_policy_without_a_curve_are_refused(run: Path) -> None:
    for words, part in (
        (("other", "--out", str(run.parent), "--curve"), "no finished run at"),
        ((str(run), "--policy", "rece"), "--policy goes with a table of the paper, or with --curve"),
        ((str(run), "--curve", "--policy", "safree"), "needs the column 'nudenet_v2_classifier_unsafe'"),
        ((str(run), "--curve", "--policy", "recee"), "did you mean 'rece'"),
    ):
        done = call(*words)
        assert done.exit_code != 0
        assert isinstance(done.exception, UserError)
        assert part in str(done.exception)
    assert not list(run.glob("curve_*"))
