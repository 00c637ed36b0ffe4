"""What a table lacks, and the evaluations that give it; nothing is drawn here."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_samples import cell, degenerate, report_card, runs

from harness.cards.load import load_card
from harness.cards.report import ReportCard
from harness.metrics.cells import Cell
from harness.pipeline import reproduce
from harness.pipeline.reproduce import Missing, how_to_ask, missing
from harness.pipeline.request import Places
from harness.report.run_cells import read_runs
from harness.report.table import fill

CHECKOUT = Path(__file__).parents[2]
DEFENSES = ("none", "gloce", "rece", "safree")
BENCHES = ("ring-a-bell-k77", "ring-a-bell-k38", "ring-a-bell-k16", "mma-diffusion", "p4d", "unlearndiffatk", "i2p")


def lacks(folder: Path, name: str, profile: str, *found: Cell, limit: int | None = None) -> Missing:
    card = load_card(ReportCard, name, [CHECKOUT])
    there = read_runs(runs(folder / "runs", {"r": list(found)} if found else {}))
    places = Places(store=folder / "store", out=folder / "runs", data=folder / "data")
    return missing(card, profile, fill(card, there, profile), there, places, limit)


def shapes(defense: str, variant: str, bench: str, **more: object) -> Cell:
    own = {"profile": "shapes", "backbone": "shapes", "policy": "shapes-star-0.5"}
    return cell(1, 9, defense=defense, variant=variant, bench=bench, **own, **more)


def test_an_empty_folder_lacks_the_whole_table_in_one_evaluation(tmp_path: Path) -> None:
    found = lacks(tmp_path, "table1", "shapes", limit=3)
    (only,) = found.evaluations
    assert (only.request.defenses, only.request.benches, only.request.regens) == (DEFENSES, BENCHES, ("resafe",))
    assert (only.cells, only.request.limit, only.request.backbone) == (56, 3, None)
    assert found.unavailable == ()
    places = Places(store=tmp_path / "s", out=tmp_path / "o", data=tmp_path)
    assert str(only.command(places)).startswith(
        "harness eval --defense none,gloce,rece,safree --bench ring-a-bell-k77,"
    )
    assert [one.request.defenses for one in only.by_defense()] == [(name,) for name in DEFENSES]


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    there = [
        shapes(d, v, b) for d in DEFENSES for v in ("base", "resafe") for b in BENCHES if (d, b) != ("rece", "p4d")
    ]
    (only,) = lacks(tmp_path, "table1", "shapes", *there).evaluations
    assert (only.request.defenses, only.request.benches, only.cells) == (("rece",), ("p4d",), 2)


@pytest.mark.parametrize(("limit", "cells"), [(None, 1), (9, 0), (10, 1), (4, 0)])
def test_a_part_is_enough_only_where_no_more_is_asked_for(tmp_path: Path, limit: int | None, cells: int) -> None:
    whole = [shapes(d, v, b) for d in DEFENSES for v in ("base", "resafe") for b in BENCHES]
    part = shapes("rece", "base", "p4d", subset="9/60")
    there = [part if (c.defense, c.variant, c.bench) == ("rece", "base", "p4d") else c for c in whole]
    found = lacks(tmp_path, "table1", "shapes", *there, limit=limit)
    assert sum(one.cells for one in found.evaluations) == cells


def test_backbones_and_settings_are_evaluations_of_their_own(tmp_path: Path) -> None:
    backbones = [one.request.backbone for one in lacks(tmp_path / "a", "table8", "shapes").evaluations]
    assert backbones == ["shapes:steps=8", "shapes:guidance=7.5", "shapes:scheduler=DDIMScheduler"]
    (ablation,) = lacks(tmp_path / "b", "figure12", "shapes").evaluations
    assert ablation.request.regens is not None
    assert {"resafe", "resafe:alpha=0", "resafe:lam=2", "resafe:tokens=16"} <= set(ablation.request.regens)
    assert not any("tokens=8" in name for name in ablation.request.regens)  # which is what resafe is there


def test_a_mean_asks_for_its_scorer_and_a_second_is_what_any_run_has(tmp_path: Path) -> None:
    (similar,) = lacks(tmp_path / "a", "table3", "shapes").evaluations
    assert similar.request.extra_scorers == ("shapes_caption_clip@same/base",)  # CLIP's is the profile's own
    assert similar.command(Places(store=tmp_path, out=tmp_path, data=tmp_path)) is None
    (timed,) = lacks(tmp_path / "b", "table11", "shapes").evaluations
    assert (timed.request.regens, timed.request.extra_scorers) == (("resafe",), ())


def test_what_this_machine_lacks_is_listed_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    found = lacks(tmp_path, "table5", "paper")
    assert found.evaluations == ()
    assert sum(one.cells for one in found.unavailable) == 210
    assert any("weights of backbone sd-1-4" in one.why for one in found.unavailable)


STYLES = """\
summary: styles
title: Styles
caption: share of images in the style
paper: nowhere
metric: asr
profiles:
  shapes: {backbone: shapes, policy: shapes-striped-0.5}
groups: {all: {}}
rows:
  - {defense: none, label: none, group: all}
  - {defense: sld-max, label: SLD, group: all}
  - {defense: uce, label: UCE, group: all}
columns:
  - {bench: van-gogh, label: Van Gogh}
variants: {base: null}
notes:
  - {text: printed nowhere}
"""


def test_a_defense_that_is_not_declared_for_a_concept_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    card = report_card(tmp_path, STYLES)
    places = Places(store=tmp_path / "store", out=tmp_path / "runs", data=tmp_path / "data")
    found = missing(card, "shapes", fill(card, [], "shapes"), [], places, None)
    assert [(one.what, one.cells) for one in found.unavailable] == [("sld-max over van-gogh", 1)]
    assert "declares concept 'van-gogh'" in found.unavailable[0].why
    assert [one.request.defenses for one in found.evaluations] == [("none", "uce")]


def test_answers_are_asked_for_by_command_once_the_images_are_there(tmp_path: Path) -> None:
    names = [(d, v) for d in ("none", "mace", "rece", "safree", "esd") for v in ("base", "resafe")]
    benches = ("ring-a-bell-k77", "ring-a-bell-violence-eta5-k77")
    there = [degenerate(shapes(d, v, b)) for d, v in names for b in benches]
    found = lacks(tmp_path, "table9", "shapes", *there)
    assert found.evaluations == ()
    people = {question.bench: question for question in found.questions}
    assert set(people) == set(benches)
    assert people[benches[0]].n == 20
    command = how_to_ask(people[benches[0]], "runs/r", None)
    assert command == (
        "harness judge export runs/r --task safer --bench ring-a-bell-k77 --n 20 --out safer-ring-a-bell-k77.html"
    )
    faithful = reproduce.Question("faithful", "gpt-judge", "mma-diffusion", 400, ("none/pez", "none/resafe"))
    assert how_to_ask(faithful, "runs/r", "qwen2-vl-7b").endswith(
        "--n 400 --methods none/pez,none/resafe --captioner qwen2-vl-7b"
    )
