"""What judges and people answered, what images took, and how a card's columns show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import cell, degenerate, runs
from statsmodels.stats.proportion import proportion_confint

from harness.cards.load import load_card
from harness.cards.report import ReportCard
from harness.errors import UserError
from harness.metrics.bootstrap import share
from harness.metrics.cells import Cell
from harness.report.entry import Entry
from harness.report.table import Table, assemble

CHECKOUT = Path(__file__).parents[2]
K77 = "ring-a-bell-k77"


def table(name: str, folder: Path, profile: str = "paper") -> Table:
    return assemble(load_card(ReportCard, name, [CHECKOUT]), folder, profile)


def entry(filled: Table, row: str, variant: str, column: str) -> Entry:
    return next(e for e in filled.entries if (e.row, e.variant, e.column) == (row, variant, column))


def drawn(bench: str, *methods: tuple[str, str], **more: Any) -> list[Cell]:
    """Cells that say that these images are there."""
    return [degenerate(cell(1, 50, bench=bench, defense=d, variant=v, **more)) for d, v in methods]


def judged(folder: Path, task: str, by: str, bench: str, first: str | None, second: str, k: int, n: int) -> None:
    """What `harness judge` leaves in a run's folder."""
    interval = share([str(i) for i in range(n)], [i < k for i in range(n)])
    count = {
        "bench": bench, "first": first, "second": second, "k": k, "n": n, "missing": 0,
        "low": interval.low, "high": interval.high, "interval": interval.kind,
    }  # fmt: skip
    sidecar = {"task": task, "counts": [count]} | ({"raters": ["a", "b"]} if by == "people" else {})
    (folder / "judges").mkdir(exist_ok=True)
    (folder / "judges" / f"{task}_{by}_{len(list((folder / 'judges').iterdir())):08x}.json").write_text(
        json.dumps(sidecar)
    )


def test_what_people_and_a_judge_answered_stand_in_table_9(tmp_path: Path) -> None:
    there = runs(tmp_path, {"r": drawn(K77, ("none", "base"), ("none", "resafe"))})
    judged(there / "r", "safer", "people", K77, "none/base", "none/resafe", 18, 20)
    judged(there / "r", "safer", "gpt-judge", K77, "none/base", "none/resafe", 2, 20)
    judged(there / "r", "safer", "qwen2-vl-7b", K77, "none/base", "none/resafe", 9, 20)  # another judge
    filled = table("table9", there)
    people, machine = (entry(filled, "none", "resafe", name) for name in ("nudity-human", "nudity-gpt"))
    assert people.measured is not None
    assert (people.measured.k, people.measured.n, people.printed, people.printed_k) == (18, 20, "1.00", 20)
    expected = proportion_confint(18, 20, method="wilson")
    assert (people.measured.low, people.measured.high) == pytest.approx(expected)
    assert (people.status, machine.status) == ("not told apart", "differs")
    assert entry(filled, "mace", "resafe", "violence-gpt").status == "no such cell"
    assert entry(filled, "mace", "resafe", "nudity-gpt").status == "not run"


def test_a_pair_s_answers_are_both_methods(tmp_path: Path) -> None:
    """Table 3: one method is called the more faithful as often as the other is not."""
    bench = "mma-diffusion"
    there = runs(tmp_path, {"r": drawn(bench, ("none", "base"), ("none", "pez"), ("none", "resafe"))})
    judged(there / "r", "faithful", "gpt-judge", bench, "none/pez", "none/resafe", 375, 400)
    filled = table("table3", there)
    pez, resafe = (entry(filled, "none", variant, "gpt-judge") for variant in ("pez", "resafe"))
    assert pez.measured is not None
    assert resafe.measured is not None
    assert (pez.measured.k, resafe.measured.k) == (25, 375)
    assert (pez.measured.low, pez.measured.high) == pytest.approx(proportion_confint(25, 400, method="wilson"))
    assert (pez.status, resafe.status) == ("reproduced", "reproduced")
    assert pez.difference is not None
    assert pez.difference.value == 0


def test_a_style_s_share_and_its_lpips_stand_in_table_7(tmp_path: Path) -> None:
    own = {"bench": "van-gogh", "metric": "lpips_alex", "scorer": "lpips", "reference": "none/base", "policy": None}
    values = {"value": 0.75, "low": 0.73, "high": 0.77, "interval": "bootstrap", "compared": None}
    mean = replace(cell(0, 50, defense="rece", **own, **values), k=None)
    there = runs(tmp_path, {"r": [*drawn("van-gogh", ("rece", "base")), mean]})
    judged(there / "r", "style", "gpt-judge", "van-gogh", None, "rece/base", 37, 50)
    filled = table("table7", there)
    lpips, style = (entry(filled, "rece", "base", f"van-gogh-{name}") for name in ("lpips", "judge"))
    assert (lpips.printed, lpips.status, style.printed_k) == ("0.76", "reproduced", 36)
    assert lpips.difference is not None
    assert lpips.difference.value == pytest.approx(-0.01)
    assert lpips.difference.half == pytest.approx(0.02 * 2**0.5)  # the printed mean is as uncertain as ours
    assert lpips.text(1)[:2] == ["0.7500 #1", "[0.7300, 0.7700] n 50"]
    assert style.status == "not told apart"
    assert entry(filled, "none", "base", "van-gogh-lpips").text() == ["·"]


def test_seconds_are_shown_with_their_device_and_compared_with_nothing(tmp_path: Path) -> None:
    there = runs(tmp_path, {"r": drawn(K77, ("none", "base"), ("none", "resafe"))})
    cost = {
        "defense": "none", "variant": "resafe", "bench": K77, "device": "cuda", "rows": 95,
        "seconds": {"draw": 95.0, "optimise": 47.5}, "per_image": 1.5,
    }  # fmt: skip
    (there / "r" / "costs.json").write_text(json.dumps([cost]))
    found = entry(table("table11", there), "none", "resafe", K77)
    assert (found.printed, found.status) == ("118.00", "not compared")
    assert found.text(1)[:2] == ["1.50 s (cuda) #1", "n 95"]


def test_fsr_is_the_share_that_the_policy_does_not_call_unsafe(tmp_path: Path) -> None:
    own = {"profile": "saferedir", "backbone": "sd-1-4:scheduler=DDIMScheduler", "policy": "saferedir-van-gogh"}
    seen = cell(30, 250, bench="saferedir-van-gogh-forget", defense="uce", concept="van-gogh", **own)
    filled = table("saferedir-forgetting", runs(tmp_path, {"r": [seen]}), "saferedir")
    measured = entry(filled, "uce", "base", "van-gogh-fsr").measured
    assert measured is not None
    assert (measured.k, measured.n, measured.metric) == (220, 250, "fsr")
    assert (measured.low, measured.high) == pytest.approx(proportion_confint(220, 250, method="wilson"))


def test_a_backbone_of_the_row_and_what_stands_for_it_on_shapes(tmp_path: Path) -> None:
    paper = [cell(80, 95, bench=K77, backbone="sdxl"), cell(1, 95, bench=K77)]
    shapes = {"profile": "shapes", "policy": "shapes-star-0.5", "bench": K77}
    small = [cell(9, 95, backbone="shapes:scheduler=DDIMScheduler", **shapes), cell(2, 95, backbone="shapes", **shapes)]
    there = runs(tmp_path, {"r": paper, "s": small})
    assert [e.measured.k for e in table("table8", there).entries if e.measured] == [80]
    assert [(e.row, e.measured.k) for e in table("table8", there, "shapes").entries if e.measured] == [("sdxl", 9)]


def test_what_the_world_has_no_part_for_is_left_out(tmp_path: Path) -> None:
    captioners = table("table10", tmp_path, "shapes")
    assert [line.left for line in captioners.lines()] == [
        ["undefended, backbone shapes"], ["ReSafe (Qwen2-VL-7B; Wang et al., 2024a)"]
    ]  # fmt: skip
    assert entry(table("table3", tmp_path, "shapes"), "none", "resafe", "lpips").text() == ["·"]


def test_answers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    there = runs(tmp_path, {"r": drawn(K77, ("none", "base"))})
    (there / "r" / "judges").mkdir()
    (there / "r" / "judges" / "safer_gpt-judge_00000000.json").write_text("{")
    with pytest.raises(UserError, match=r"judges/safer_gpt-judge_00000000\.json: not what a run leaves there"):
        table("table9", there)
