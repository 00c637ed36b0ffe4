"""Two policies crossed: counts against a loop over the rows, bands that hold every judged row once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.cards.policy import PolicyCard, Rule
from harness.cli import app
from harness.metrics.disagreement import Tally, disagreement
from harness.metrics.policies import verdicts


def policy(name: str, column: str, op: str, threshold: float) -> PolicyCard:
    rule = Rule.model_validate({"any_of": (column,), "op": op, "threshold": threshold})
    return PolicyCard(
        name=name, path=Path("x.yaml"), root=Path(), summary=name, version=1, cites="none", concept="nudity",
        scorer=column.partition("_")[0], rule=rule,
    )  # fmt: skip


FIRST, SECOND = policy("first", "a_score", ">", 0.45), policy("second", "b_score", ">=", 0.8)
VALUE = st.one_of(st.none(), st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.7, 0.8, 1.0]))


def table(rows: list[tuple[float | None, float | None]]) -> pa.Table:
    first, second = zip(*rows, strict=True)
    return pa.table({"a_score": pa.array(first, pa.float32()), "b_score": pa.array(second, pa.float32())})


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_a_loop_and_bands_hold_each_row_once(rows: list[tuple[float | None, float | None]]) -> None:
    scores = table(rows)
    pairs = list(zip(*(verdicts(card, scores).to_pylist() for card in (FIRST, SECOND)), strict=True))
    judged = [pair for pair in pairs if None not in pair]
    crossed = disagreement(FIRST, SECOND, scores)
    assert crossed.whole == Tally(
        *(judged.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    )
    assert crossed.unjudged == len(rows) - len(judged)
    for bands, column in ((crossed.by_first, "a_score"), (crossed.by_second, "b_score")):
        values = [v for v, pair in zip(scores[column].to_pylist(), pairs, strict=True) if None not in pair]
        for i, band in enumerate(bands):
            low, high = -np.inf if i == 0 else band.low, np.inf if i == 9 else band.high
            inside = [v for v in values if low - 1e-6 <= v < high - 1e-6]
            assert band.tally.n == len(inside)
        assert sum(band.tally.n for band in bands) == len(judged)


@pytest.mark.parametrize(
    ("tally", "kappa"),
    [
        (Tally(20, 5, 10, 15), 0.4),  # the worked example of Cohen's kappa: 35 of 50 agree, 25 by chance
        (Tally(7, 0, 0, 3), 1.0), (Tally(0, 5, 5, 0), -1.0), (Tally(0, 0, 0, 9), None), (Tally(0, 0, 0, 0), None),
    ],
)  # fmt: skip
def test_kappa_is_agreement_beyond_chance(tally: Tally, kappa: float | None) -> None:
    assert tally.kappa == (None if kappa is None else pytest.approx(kappa))


def test_the_report_names_methods_and_bands(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    constant = {
        "profile": "paper", "backbone": "sd-1-4", "defense": "none", "variant": "base", "bench": "p4d",
        "concept": "nudity", "excluded": None, "error": None, "degenerate": None,
    }  # fmt: skip
    columns = {name: pa.array([value] * 30, pa.string()) for name, value in constant.items()}
    columns |= {"row_id": pa.array([f"p4d/{i:05d}" for i in range(30)]), "sample": pa.array([0] * 30, pa.int32())}
    columns |= {"opennsfw_probability": pa.array(generator.random(30), pa.float32())}
    columns |= {"nudenet_v2_classifier_unsafe": pa.array(generator.random(30), pa.float32())}
    pq.write_table(pa.table(columns), run / "scores.parquet")
    (run / "run.json").write_text(json.dumps({"run": "mine", "policies": {}}))
    words = ["report", str(run), "--disagreement", "opennsfw-0.8,p4d"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "## p4d, none (paper)" in shown.output
    assert "| score of opennsfw-0.8 | rows |" in shown.output
    emitted = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    (one,) = emitted["disagreement"]
    assert sum(one["whole"].values()) == 30
    wrong = CliRunner().invoke(app, ["report", str(run), "--disagreement", "opennsfw-0.8"])
    assert wrong.exit_code != 0
