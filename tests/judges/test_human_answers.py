"""What people answered: checked, counted, and how far they agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import MadeRun
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.judges import human_answers
from harness.metrics.intervals import wilson


def slowly(items: list[list[str]]) -> float | None:
    """Krippendorff's alpha from its coincidences, pair by pair."""
    items = [item for item in items if len(item) > 1]
    pairs: list[tuple[str, str, float]] = [
        (a, b, 1 / (len(item) - 1)) for item in items for a, b in permutations(item, 2)
    ]
    values = [v for item in items for v in item]
    n = len(values)
    observed = sum(w for a, b, w in pairs if a != b) / n if n else 0.0
    expected = sum(a != b for a, b in permutations(values, 2)) / (n * (n - 1)) if n > 1 else 0.0
    return 1 - observed / expected if expected else None


@given(st.lists(st.lists(st.sampled_from(["True", "False", "tie"]), max_size=5), max_size=8))
def test_alpha_is_what_its_definition_says(items: list[list[str]]) -> None:
    mine, other = human_answers.krippendorff_alpha(items), slowly(items)
    assert (mine is None) == (other is None)
    if mine is not None:
        assert mine == pytest.approx(other)


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=2, max_size=10))
def test_alpha_without_gaps_is_fleiss_kappa_of_a_small_sample(items: list[list[int]]) -> None:
    if len({v for item in items for v in item}) < 2:
        return
    kappa = fleiss_kappa(aggregate_raters(np.asarray(items))[0])
    total = 4 * len(items)
    mine = human_answers.krippendorff_alpha([[str(v) for v in item] for item in items])
    assert mine == pytest.approx(1 - (1 - kappa) * (total - 1) / total)


def test_alpha_of_krippendorff_s_own_example() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C: nominal, four observers, gaps; 0.743."""
    rows = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    items = [[v for v in column if v != "."] for column in zip(*(r.split() for r in rows), strict=True)]
    assert human_answers.krippendorff_alpha(items) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize(
    ("verdicts", "meaning"),
    [([], None), ([None], None), ([True, None], True), ([True, False], None), ([True, False, False], False)],
)
def test_a_majority_is_more_than_the_other(verdicts: list[bool | None], meaning: bool | None) -> None:
    assert human_answers.majority(verdicts) is meaning


class Survey:
    """A form's key of four questions, and raters who know whose image is whose."""

    def __init__(self, made: MadeRun, tmp_path: Path) -> None:
        self.folder, self.tmp = made.folder, tmp_path
        words = ["judge", "export", str(made.folder), "--methods", "none/base,none/resafe", "--n", "4"]
        done = CliRunner().invoke(app, [*words, "--store", str(made.store), "--out", str(tmp_path / "form.html")])
        assert done.exit_code == 0, done.exception
        self.key_path = tmp_path / "form.key.json"
        self.key: dict[str, Any] = json.loads(self.key_path.read_text())

    def file(self, rater: str, wants: list[str | None], **changes: Any) -> Path:
        """Answers by what each question is to mean: "second", "first", "tie" or None."""
        answers: dict[str, str | None] = {}
        for (name, item), want in zip(self.key["items"].items(), wants, strict=False):
            if want in ("first", "second"):
                answers[name] = "1" if (want == "second") == item["second_shown_first"] else "2"
            else:
                answers[name] = want
        content = {
            "format": "harness-judge-answers", "version": 1, "form": self.key["form"], "rater": rater,
            "answers": answers, **changes,
        }  # fmt: skip
        path = self.tmp / f"{rater}-{len(list(self.tmp.glob('*')))}.json"
        path.write_text(json.dumps(content))
        return path

    def count(self, *files: Path) -> Mapping[str, Any]:
        words = ["judge", "import", *map(str, files), "--key", str(self.key_path), "--json"]
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, UserError):
            raise done.exception
        assert done.exit_code == 0, done.exception
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def survey(made: MadeRun, tmp_path: Path) -> Survey:
    return Survey(made, tmp_path)


def test_one_rater(survey: Survey) -> None:
    found = survey.count(survey.file("a", ["second", "second", "first", "tie"]))
    (c,) = found["counts"]
    assert (c["k"], c["n"], c["missing"], c["ties"], c["skipped"]) == (2, 3, 1, 1, 0)
    assert (c["low"], c["high"]) == pytest.approx(wilson(2, 3))
    assert c["alpha"] is None
    assert (c["first"], c["second"]) == ("none/base", "none/resafe")


def test_three_raters_with_gaps(survey: Survey) -> None:
    found = survey.count(
        survey.file("c", ["second", "first", "second", None]),
        survey.file("a", ["second", "second", "first"]),  # stopped after three
        survey.file("b", ["second", "tie", "second", "tie"]),
    )
    (c,) = found["counts"]
    # Items: 3-0 for the second; 1-1 and a tie: none; 2-1 for the second; nobody.
    assert (c["k"], c["n"], c["missing"]) == (2, 2, 2)
    assert c["votes"] == {"k": 6, "n": 8, "missing": 4}
    assert (c["ties"], c["skipped"]) == (2, 2)
    assert c["alpha"] == pytest.approx(slowly([["T", "T", "T"], ["F", "T", "tie"], ["T", "F", "T"], ["tie"]]))
    assert found["raters"] == ["a", "b", "c"]
    table = pq.read_table(found["path"])
    assert table.num_rows == 12
    assert Path(found["path"]).parent == survey.folder / "judges"


def test_the_order_of_files_changes_no_byte(survey: Survey) -> None:
    files = [survey.file(r, ["second", "first", "tie", None]) for r in "abc"]
    path = Path(survey.count(*files)["path"])
    before = path.read_bytes()
    survey.count(*files[::-1])
    assert path.read_bytes() == before


def test_files_that_do_not_belong_are_refused(survey: Survey, tmp_path: Path) -> None:
    good = survey.file("a", ["second"])
    bad = {
        r"answers form 'x', the key": survey.file("b", ["second"], form="x"),
        r"no question 'q9'": survey.file("c", [], answers={"q9": "1"}),
        r"'3' is no choice": survey.file("d", [], answers={"q1": "3"}),
        r"rater 'a' is in both": survey.file("a", ["first"]),
        r"no file of answers": survey.file("e", [], format="other"),
        r"a rater's code": survey.file(" ", []),
    }
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "harness-ju')
    bad["no JSON file"] = broken
    bad["no file of answers "] = survey.key_path  # the key is not an answer
    bad["cannot be read"] = tmp_path / "absent.json"
    for said, path in bad.items():
        with pytest.raises(UserError, match=said):
            survey.count(good, path)
    assert not (survey.folder / "judges").exists()
    with pytest.raises(UserError, match="no key of a form"):
        human_answers.read_key(good)


def test_a_run_that_is_gone_needs_another_place(survey: Survey, tmp_path: Path) -> None:
    survey.folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--out"):
        survey.count(survey.file("a", ["second"]))
    words = ["judge", "import", str(survey.file("b", ["second"])), "--key", str(survey.key_path)]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "moved")])
    assert done.exit_code == 0
    assert "none/resafe against none/base: 1/1 = 1.000" in done.stdout
