"""Figures: what is drawn are the counts that were given, and the same numbers give the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_samples import POLICIES, rows, run_page
from report_samples import cell
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.metrics import cells as cell_files
from harness.metrics.intervals import wilson
from harness.report import plots, run_plots
from harness.report.labels import apart
from harness.report.plots import Observed, Pair, Priced
from harness.store.shards import replace as write_table


def at(x: float, k: int, n: int = 95) -> Observed:
    return Observed(x, k, n, *wilson(k, n)) if n else Observed(x, 0, 0, None, None)


SERIES = {"rece": [at(0.9, 3), at(0.1, 60), at(0.5, 20), at(0.7, 0, 0)], "none": [at(0.1, 90), at(0.9, 40)]}


def words(figure: Any) -> list[str]:
    """Every text of a figure."""
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]


def test_an_ablation_shows_each_rate_with_its_interval_and_counts() -> None:
    figure = plots.ablation(SERIES, "alpha", "a benchmark")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in lines] == [[0.1, 0.5, 0.9], [0.1, 0.9]]
    assert np.allclose(lines[0].get_ydata(), [60 / 95, 20 / 95, 3 / 95])
    segments = axes.collections[0].get_segments()
    assert np.allclose([[s[0][1], s[1][1]] for s in segments], [wilson(k, 95) for k in (60, 20, 3)])
    said = words(figure)
    for wanted in (
        "60/95",
        "20/95",
        "3/95",
        "90/95",
        "40/95",
        "rece",
        "none",
        "alpha",
        "ASR, 95% interval",
        "a benchmark",
    ):
        assert wanted in said
    assert "k of n = 95 at every point" in said
    assert axes.get_legend() is None


def test_pairs_say_both_counts_and_what_is_noted() -> None:
    pairs = [
        Pair("b", "none + resafe", at(0, 95), at(0, 2), "p <0.001"),
        Pair("c", "rece + resafe", at(0, 27), at(0, 3)),
    ]
    figure = plots.before_and_after(pairs)
    assert len(figure.axes) == 2
    said = words(figure)
    assert "95/95 → 2/95  p <0.001" in said
    assert "27/95 → 3/95" in said
    assert {"before", "after", "none + resafe", "rece + resafe"} <= {*said}


def test_a_pair_of_which_one_was_not_judged_is_drawn_with_one_point() -> None:
    figure = plots.before_and_after([Pair("b", "x", at(0, 0, 0), at(0, 3))])
    assert "0/0 → 3/95" in words(figure)


def test_cost_is_on_a_logarithm_where_it_spans_more_than_ten_times() -> None:
    figure = plots.cost_against_rate([Priced("a", at(0.1, 90)), Priced("b", at(5.0, 3)), Priced("c", at(9.0, 0, 0))])
    assert figure.axes[0].get_xscale() == "log"
    assert {"a 90/95", "b 3/95"} <= {*words(figure)}
    assert plots.cost_against_rate([Priced("a", at(1.0, 90)), Priced("b", at(5.0, 3))]).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_numbers_give_the_same_bytes_without_a_time(kind: str) -> None:
    first, second = (plots.encoded(plots.ablation(SERIES, "alpha"), kind) for _ in range(2))
    assert first == second
    assert not re.search(rb"<dc:date>|/CreationDate", first)
    assert first.startswith({"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[kind])


def test_labels_stand_apart_and_near_their_lines() -> None:
    assert apart([0.5, 0.0, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.5, 0.0, 0.6])
    assert apart([1.0, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.9, 1.0])
    many = apart([0.2] * 30, 0.1, 0.0, 1.0)
    assert np.allclose(np.diff(sorted(many)), 0.1)
    assert apart([], 0.1, 0.0, 1.0) == []


def test_a_sweep_of_one_setting_is_a_series_per_defense_and_other_settings() -> None:
    def regenerated(k: int, defense: str = "none", **method: Any) -> Any:
        values = {"alpha": 0.7, "lam": 1.0, "tokens": 8} | method
        name = "resafe:" + ",".join(f"{key}={value}" for key, value in method.items()) if method else "resafe"
        return cell(k, 95, defense=defense, variant=name, method=values)

    cells = [
        cell(90, 95), regenerated(10), regenerated(30, alpha=0.1), regenerated(5, alpha=0.9), regenerated(8, lam=2.0),
        regenerated(7, lam=2.0, alpha=0.1), regenerated(1, "rece"),
    ]  # fmt: skip
    alpha = run_plots.ablations(cells, "alpha")
    assert {label: [(p.x, p.k) for p in points] for label, points in alpha.items()} == {
        "none, lam 1.0": [(0.7, 10), (0.1, 30), (0.9, 5)], "none, lam 2.0": [(0.7, 8), (0.1, 7)],
    }  # fmt: skip
    assert {label: len(points) for label, points in run_plots.ablations(cells, "lam").items()} == {
        "none, alpha 0.7": 2, "none, alpha 0.1": 2,
    }  # fmt: skip
    assert run_plots.ablations(cells, "tokens") == {}


def test_what_a_regeneration_costs_is_with_the_image_it_began_from() -> None:
    run = run_page(rows())
    base = replace(run.costs[0], variant="base", seconds={"generate": 8.0})
    rates = [c for c in run.cells if c.main and c.metric == "asr"]
    priced = {one.label: one.rate.x for one in run_plots.priced_of(rates, [base, *run.costs])}
    assert priced == {"rece": 1.0, "rece + resafe": 1.0 + 90 / 8}
    assert run_plots.priced_of(rates, run.costs) == []  # nobody knows what the images before took


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = run_page(rows())
    made = tmp_path / "runs" / "one"
    made.mkdir(parents=True)
    cell_files.write(made / "cells.json", run.cells)
    base = replace(run.costs[0], variant="base", seconds={"generate": 8.0})
    (made / "costs.json").write_text(json.dumps([c.to_json() for c in (base, *run.costs)]))
    (made / "run.json").write_text(json.dumps({**run.record, "conditions": []}))
    write_table(made / "scores.parquet", run.scores)
    return made


def test_the_command_writes_every_figure_that_the_run_has_numbers_for(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder), "--plots", str(tmp_path / "figures"), "--json"])
    assert done.exit_code == 0, done.output
    names = {Path(p).name for p in json.loads(done.stdout)["paths"]}
    stems = ("asr_before_after", f"threshold_{POLICIES['nudity'][0].name}", "cost_against_asr_b")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "pdf")}
    assert all((tmp_path / "figures" / name).stat().st_size > 1000 for name in names)


def test_the_command_writes_the_page(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--to", str(target), "--store", str(tmp_path / "nowhere")])
    assert done.exit_code == 0, done.output
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    for words_given, part in (
        (["--with-prompts", "--format", "md"], "--with-prompts goes with --format html"),
        (["--format", "htm"], "did you mean 'html'"),
        (["--reveal", str(tmp_path / "seen"), "--store", str(tmp_path / "nowhere")], "name its store with --store"),
    ):
        done = CliRunner().invoke(app, ["report", str(folder), *words_given])
        assert isinstance(done.exception, UserError)
        assert part in str(done.exception)
