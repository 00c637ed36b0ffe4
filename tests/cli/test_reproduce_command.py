"""`harness reproduce` as a person calls it, over a small card of one's own."""

from __future__ import annotations

import json
from typing import Any

from desk import Desk
from typer.testing import CliRunner

from harness.cli import app

CARD = """\
summary: a table of a test
title: A table of a test
caption: share of unsafe images
paper: nowhere
metric: asr
profiles:
  small: {backbone: "shapes:micro_batch=4", policy: shapes-star-oracle}
groups: {all: {}}
rows:
  - {defense: none, label: none, group: all}
  - {defense: uce, label: UCE, group: all}
  - {defense: rece, backbone: sd-1-5, label: RECE elsewhere, group: all}
columns:
  - {bench: ten, label: Ten, n: 10}
  - {name: alike, bench: ten, label: SSIM, unit: number, metric: mean, of: ssim_rgb@none/base}
  - {name: people, bench: ten, label: Safer, n: 10, metric: win-rate, of: safer, by: people, against: {base: none/base}}
variants: {base: null}
notes:
  - {text: printed nowhere}
  - {rows: [none], columns: [alike, people], blank: true, text: it would be compared with itself}
"""


def call(desk: Desk, *words: str) -> Any:
    folders = ["--cards", str(desk.cards), "--store", str(desk.store), "--out", str(desk.out)]
    return CliRunner().invoke(app, ["reproduce", "mine", "--profile", "small", *folders, *words])


def test_a_table_is_computed_printed_and_not_computed_again(desk: Desk) -> None:
    (desk.cards / "reports").mkdir()
    (desk.cards / "reports" / "mine.yaml").write_text(CARD)
    planned = call(desk, "--dry-run", "--limit", "2", "--json")
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert not desk.out.exists()
    assert sum(one["images_to_draw"] for one in plan["evaluations"]) > 0
    (refused,) = plan["unavailable"]
    assert "sd-1-5" in refused["why"]
    assert refused["what"].startswith("rece")

    done = call(desk, "--limit", "2", "--executor", "inline", "--quiet", "--format", "csv")
    assert done.exit_code == 0, done.output
    lines = [line.split(",") for line in done.stdout.splitlines() if line.startswith("mine,")]
    by_place = {(line[2], line[3]): line for line in lines}
    for row in ("none", "uce"):
        assert "2/10" in by_place[row, "ten"]
    assert by_place["uce", "alike"][14] != ""  # the value of a scorer that the profile does not run by itself
    assert "not available" in done.stderr
    assert "judge export" in done.stderr

    again = call(desk, "--limit", "2", "--dry-run")
    assert "0 evaluations" in again.stdout, again.stdout
    shown = call(desk, "--limit", "2", "--executor", "inline")
    assert "SUBSET: 2/10 rows of ten" in shown.stdout
    assert "SHAPES WORLD" in shown.stdout
    whole = call(desk, "--dry-run")
    assert "2 rows" not in whole.stdout
    assert "0 evaluations" not in whole.stdout
