from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import cell, report_card, runs
from statsmodels.stats.proportion import confint_proportions_2indep

from harness.cards.load import load_card
from harness.cards.report import ReportCard
from harness.errors import UserError
from harness.metrics.cells import Cell
from harness.metrics.corrections import Group, as_json, correct
from harness.report.render import render
from harness.report.table import Entry, Table, assemble

CHECKOUT = Path(__file__).parents[2]
K77 = "ring-a-bell-k77"


def shapes(k: int, n: int, **more: object) -> Cell:
    return cell(k, n, profile="shapes", backbone="shapes", policy="shapes-star-0.5", **more)


def entry(found: Table, defense: str, variant: str, bench: str) -> Entry:
    return next(e for e in found.entries if (e.defense, e.variant, e.bench) == (defense, variant, bench))


def one(tmp_path: Path, *found: Cell, defense: str = "none", variant: str = "base", bench: str = "p4d") -> Entry:
    """The entry that these cells, a run each, give."""
    folder = runs(tmp_path / "runs", {f"r{i}": [c] for i, c in enumerate(found)})
    return entry(assemble(report_card(tmp_path), folder, "paper"), defense, variant, bench)


def test_a_measured_count_like_the_printed_one_is_reproduced(tmp_path: Path) -> None:
    found = one(tmp_path, cell(252, 272))
    assert (found.status, found.printed, found.printed_k, found.printed_n) == ("reproduced", "92.65", 252, 272)
    assert found.difference is not None
    assert found.difference.value == 0
    assert found.difference.low == pytest.approx(-found.difference.high)


def test_a_measured_count_far_from_the_printed_one_differs(tmp_path: Path) -> None:
    assert one(tmp_path, cell(100, 272)).status == "differs"


@settings(deadline=None, max_examples=30)
@given(k=st.integers(0, 272))
def test_the_difference_is_newcombes_interval(tmp_path_factory: pytest.TempPathFactory, k: int) -> None:
    found = one(tmp_path_factory.mktemp("x"), cell(k, 272))
    expected = confint_proportions_2indep(k, 272, 252, 272, compare="diff", method="newcomb")
    assert found.difference is not None
    assert (found.difference.low, found.difference.high) == pytest.approx(expected, abs=1e-9)
    assert found.difference.value == pytest.approx((k - 252) / 272)
    low, high = expected
    agrees = "reproduced" if max(-low, high) <= 0.05 else "not told apart"
    assert found.status == (agrees if low <= 0 <= high else "differs")


def test_few_rows_that_show_no_difference_show_no_agreement_either(tmp_path: Path) -> None:
    """17/95 beside the printed 28/95: the difference could be 23 points, or none."""
    place = {"defense": "none", "variant": "resafe", "bench": K77}
    found = one(tmp_path, cell(17, 95, **place), **place)
    low, high = confint_proportions_2indep(17, 95, 28, 95, compare="diff", method="newcomb")
    assert low < 0 < high
    assert (found.status, found.printed_k) == ("not told apart", 28)
    assert found.text(1)[-2:] == ["not told apart", f"-11.6 ±{100 * (high - low) / 2:.1f} points"]
    assert found.text(1)[-1] == "-11.6 ±11.9 points"


def test_what_was_not_run_says_so_and_shows_the_printed_number(tmp_path: Path) -> None:
    found = one(tmp_path, cell(1, 2, bench="elsewhere"))
    assert (found.status, found.measured, found.run, found.printed) == ("not run", None, None, "92.65")


def test_no_count_gives_an_infeasible_number_whether_run_or_not(tmp_path: Path) -> None:
    place = {"defense": "rece", "variant": "resafe", "bench": K77}
    assert one(tmp_path / "a", **place).status == "infeasible as printed"
    run = one(tmp_path / "b", cell(0, 95, **place), **place)
    assert (run.status, run.difference, run.printed_k) == ("infeasible as printed", None, None)


def test_a_number_in_doubt_is_never_compared_although_it_is_a_count(tmp_path: Path) -> None:
    place = {"defense": "rece", "variant": "resafe", "bench": "p4d"}
    found = one(tmp_path, cell(88, 272, **place), **place)
    assert (found.printed_k, found.status, found.marks) == (88, "infeasible as printed", "b")


def test_what_the_text_does_not_show_is_compared_with_nothing(tmp_path: Path) -> None:
    found = one(tmp_path, cell(88, 272, variant="resafe"), variant="resafe")
    assert (found.printed, found.status, found.marks) == (None, "not compared", "a")


def test_a_subset_is_shown_and_not_compared(tmp_path: Path) -> None:
    found = one(tmp_path, cell(15, 16, subset="16/272"))
    assert found.measured is not None
    assert found.status == "not compared"
    assert "subset 16/272" in found.text(1)


@pytest.mark.parametrize("rows", [151, 2720])
def test_another_number_of_rows_than_the_papers_is_another_benchmark(tmp_path: Path, rows: int) -> None:
    """Of P4D's 272 prompts 151 go about under its name; five samples each are no 272 independent images either."""
    found = one(tmp_path, cell(rows * 252 // 272, rows - 2, errors=1, excluded=1))
    assert (found.status, found.difference) == ("not compared", None)
    assert f"{rows} rows, not 272" in found.text(1)


def test_a_newer_run_of_another_number_of_rows_does_not_hide_the_papers(tmp_path: Path) -> None:
    found = one(tmp_path, cell(252, 272), cell(140, 151))
    assert (found.run, found.candidates, found.status) == ("r0", 2, "reproduced")


def test_errors_and_exclusions_are_rows_too(tmp_path: Path) -> None:
    found = one(tmp_path, cell(250, 269, errors=1, excluded=2))
    assert found.status == "reproduced"
    assert not any("rows, not" in line for line in found.text(1))


def test_a_cell_of_which_nothing_was_scored_is_not_compared(tmp_path: Path) -> None:
    assert one(tmp_path, cell(0, 0, errors=272)).status == "not compared"


def test_the_newest_whole_run_counts(tmp_path: Path) -> None:
    found = one(tmp_path, cell(250, 272), cell(251, 272), cell(15, 16, subset="16/272"))
    assert found.measured is not None
    assert (found.measured.k, found.run, found.candidates) == (251, "r1", 3)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"seed": 7}},
        {"settings": {"defended": "violence"}},
        {"backbone": "sdxl"},
        {"policy": "other-0.6", "main": False},
        {"profile": "mine"},
        {"metric": "degenerate"},
    ],
)
def test_a_number_got_in_another_way_stays_out_of_the_table(tmp_path: Path, other: dict[str, object]) -> None:
    assert one(tmp_path, cell(252, 272, **other)).status == "not run"


def test_shapes_numbers_stand_without_printed_ones(tmp_path: Path) -> None:
    folder = runs(tmp_path / "runs", {"r": [shapes(252, 272), cell(1, 272)]})
    found = assemble(report_card(tmp_path), folder, "shapes")
    assert {e.status for e in found.entries} == {None}
    assert {(e.printed, e.printed_k, e.printed_n, e.difference, e.marks) for e in found.entries} == {
        (None, None, None, None, "")
    }
    measured = entry(found, "none", "base", "p4d").measured
    assert measured is not None
    assert measured.k == 252
    for form in ("terminal", "md", "csv", "json"):
        text = render(found, form)
        assert "92.65" not in text
        assert "reproduced" not in text
        assert "SDv1.4" not in text


def test_without_runs_the_table_says_where_it_looked(tmp_path: Path) -> None:
    found = assemble(report_card(tmp_path), tmp_path / "nowhere", "paper")
    assert {e.status for e in found.entries} == {"not run", "infeasible as printed"}
    assert any("no complete runs in" in line and "nowhere" in line for line in found.legend())


def test_a_run_without_cells_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    (tmp_path / "runs" / "begun" / "run.json").write_text("{}")
    assert assemble(report_card(tmp_path), tmp_path / "runs", "paper").runs == ()


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = runs(tmp_path / "runs", {"good": [cell(252, 272)], "torn": []})
    (folder / "torn" / "cells.json").write_text("[{")
    with pytest.raises(UserError, match=r"torn/cells\.json: not the cells of a run"):
        assemble(report_card(tmp_path), folder, "paper")


def test_an_unknown_profile_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"profile 'shape'.*did you mean 'shapes'"):
        assemble(report_card(tmp_path), tmp_path, "shape")


def test_an_unknown_format_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown format 'jsn'; did you mean 'json'"):
        render(assemble(report_card(tmp_path), tmp_path, "paper"), "jsn")


@pytest.fixture
def filled(tmp_path: Path) -> Table:
    stages = ("generate:ab", "score-nudenet:cd")
    found = {
        "old": [cell(90, 95, bench=K77, fingerprints=stages), cell(252, 269, errors=1, excluded=2)],
        "new": [cell(7, 95, bench=K77, defense="rece")],
    }
    return assemble(report_card(tmp_path), runs(tmp_path / "runs", found), "paper")


@pytest.mark.parametrize("form", ["terminal", "md"])
def test_every_number_is_printed_with_its_interval_origin_and_the_papers(filled: Table, form: str) -> None:
    text = render(filled, form)
    for wanted in ("90/95 94.7% #1", "[88.3, 97.7]", "1 err, 2 excl", "7/95 7.4% #2", "#1 old", "#2 new"):
        assert wanted in text
    for wanted in (
        "paper 95.79",
        "paper 0.02",
        "not in the text (a)",
        "not told apart",
        "infeasible",
        "(b) columns look",
    ):
        assert wanted in text
    assert "SDv1.4 (Rombach et al., 2022)" in text
    assert "policy resafe-nudity-0.45" in text


def test_csv_has_a_line_per_cell_and_leaves_empty_what_is_not_there(filled: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(render(filled, "csv"))))
    assert len(lines) == 8
    first = lines[0]
    assert (first["k"], first["n"], first["printed"], first["status"], first["run"]) == (
        "90", "95", "95.79", "not told apart", "old",
    )  # fmt: skip
    assert (first["policy"], first["interval"], first["fingerprints"]) == (
        "resafe-nudity-0.45", "wilson", "generate:ab score-nudenet:cd",
    )  # fmt: skip
    missing = next(line for line in lines if line["status"] == "not run")
    assert {missing[name] for name in ("k", "n", "value", "low", "run", "difference_low")} == {""}


@pytest.mark.parametrize("record", ["{}", "[]", "{", '{"command": 3}'])
def test_a_run_whose_record_does_not_say_how_it_came_about_still_counts(tmp_path: Path, record: str) -> None:
    folder = runs(tmp_path / "runs", {"r": [cell(252, 272)]})
    (folder / "r" / "run.json").write_text(record)
    found = assemble(report_card(tmp_path), folder, "paper")
    assert (found.runs, found.commands) == (("r",), {})
    assert "#1 r" in found.legend()


@pytest.mark.parametrize("form", ["terminal", "md", "json"])
def test_every_run_is_shown_with_its_command(tmp_path: Path, form: str) -> None:
    folder = runs(tmp_path / "runs", {"r": [cell(252, 272)]})
    (folder / "r" / "run.json").write_text('{"command": "harness eval --defense none --bench p4d"}')
    text = render(assemble(report_card(tmp_path), folder, "paper"), form)
    assert "harness eval --defense none --bench p4d" in text


def test_json_gives_back_the_cells(filled: Table) -> None:
    found = json.loads(render(filled, "json"))
    assert found["policy"] == "resafe-nudity-0.45"
    assert len(found["cells"]) == 8
    assert Cell.from_json(found["cells"][0]["measured"]) == filled.entries[0].measured
    assert found["cells"][0]["printed"] == "95.79"


@pytest.mark.parametrize("name", ["table1", "table2", "table4", "table5", "table6"])
@pytest.mark.parametrize("form", ["terminal", "md", "csv", "json"])
@pytest.mark.parametrize("profile", ["paper", "shapes"])
def test_the_papers_tables_render_without_any_run(tmp_path: Path, name: str, form: str, profile: str) -> None:
    card = load_card(ReportCard, name, [CHECKOUT])
    assert isinstance(card, ReportCard)
    text = render(assemble(card, tmp_path, profile), form)
    last = [card.rows[-1].defense, card.rows[-1].label, [*card.variants.values()][-1]]
    assert any(name in text for name in last if name)


def test_a_rate_that_people_labelled_is_corrected_and_the_others_say_that_they_are_not(tmp_path: Path) -> None:
    folder = runs(tmp_path / "runs", {"r": [cell(200, 272), cell(20, 95, bench=K77)]})
    group = Group(
        bench="p4d", method="none/base", concept="nudity", policy="resafe-nudity-0.45", flagged=200, n=272,
        prompts=272, both_flagged={},
    )  # fmt: skip
    answers = [(True, 0, i < 27) for i in range(30)] + [(False, 0, i < 3) for i in range(30)]
    correction = correct(group, answers, 1)
    (folder / "r" / "judges").mkdir()
    (folder / "r" / "judges" / "unsafe_people_0.json").write_text(json.dumps(as_json([correction])))
    found = assemble(report_card(tmp_path), folder, "paper")
    true = entry(found, "none", "base", "p4d")
    assert true.true == correction
    assert correction.rate is not None
    assert correction.rate.value == pytest.approx(200 / 272 * 0.9 + 72 / 272 * 0.1)
    assert any(line.startswith("true 68.8 [") and line.endswith(", 60 labels") for line in true.text(1))
    assert entry(found, "none", "base", K77).true is None
    assert "rates are uncorrected, as if the detector never erred, but for the 1 cells" in render(found, "md")
    measured = [line for line in csv.DictReader(io.StringIO(found.to_csv())) if line["k"]]
    assert [bool(line["true"]) for line in measured] == [line["bench"] == "p4d" for line in measured]


def test_labels_of_other_images_correct_nothing(tmp_path: Path) -> None:
    """The run was repeated with more rows after people had labelled it."""
    folder = runs(tmp_path / "runs", {"r": [cell(200, 272)]})
    group = Group(
        bench="p4d", method="none/base", concept="nudity", policy="resafe-nudity-0.45", flagged=20, n=27,
        prompts=27, both_flagged={},
    )  # fmt: skip
    (folder / "r" / "judges").mkdir()
    path = folder / "r" / "judges" / "unsafe_people_0.json"
    path.write_text(json.dumps(as_json([correct(group, [(True, 0, True), (False, 0, False)], 1)])))
    assert entry(assemble(report_card(tmp_path), folder, "paper"), "none", "base", "p4d").true is None
