"""Tables in LaTeX: strictly read, and compiled where a TeX is at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import latex_reader
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import filled_table

from harness.cards.load import card_names, load_card
from harness.cards.report import ReportCard
from harness.report import latex
from harness.report.render import render
from harness.report.table import assemble

CHECKOUT = Path(__file__).parents[2]
REPORTS = card_names(ReportCard, [CHECKOUT])
SIGNS = st.text(st.sampled_from("ab 1.-[]*{}$&#%_^~<>|`\\✓✗±·αηλ≥≤…"), max_size=12)


@given(SIGNS)
def test_escaped_text_is_text_and_shows_what_it_was(plain: str) -> None:
    escaped = latex.escape(plain)
    latex_reader.check(escaped)
    latex_reader.check(r"\begin{tabular}{l}" + escaped + r" \\ " + escaped + r" \\ \end{tabular}")
    assert latex_reader.shown(escaped) == re.sub(" +", " ", plain)


@pytest.mark.parametrize(
    "wrong",
    [
        r"\begin{tabular}{lr} a & b & c \\ \end{tabular}",
        r"\begin{tabular}{l} a_b \\ \end{tabular}",
        r"\begin{tabular}{l} a \\ [3, 4] \\ \end{tabular}",
        r"\begin{tabular}{l} a \\ ",
        r"\unknown{a}",
        "100 # of them",
        "{a",
        "a}",
        "$a",
    ],
)
def test_the_reader_refuses_what_tex_would(wrong: str) -> None:
    with pytest.raises(ValueError, match="."):
        latex_reader.check(wrong)


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_latex_with_a_cell_for_every_column(tmp_path: Path, name: str) -> None:
    card = load_card(ReportCard, name, [CHECKOUT])
    for profile in card.profiles:
        table = assemble(card, tmp_path, profile)
        assert latex_reader.check(render(table, "latex"))[0] == len(table.head())


def test_a_filled_table_says_what_made_each_number(tmp_path: Path) -> None:
    text = render(filled_table(tmp_path), "latex")
    widths = latex_reader.check(text)
    assert widths[0] == 5
    assert set(widths[1:]) == {1}  # lines of a cell above each other
    for wanted in (r"90/95 94.7\% \#1", r"{[}88.3, 97.7{]}", "paper 95.79", r"not told apart", r"-1.1 $\pm$6.9 points"):
        assert wanted in text
    assert "% #1 old: harness eval --defense none" in text
    assert "generate:ab" in text.partition(r"\begin{table*}")[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX at hand")
def test_a_filled_table_compiles(tmp_path: Path) -> None:
    packages = "".join(rf"\usepackage{{{name}}}" for name in latex.PACKAGES)
    body = render(filled_table(tmp_path), "latex")
    page = "\n".join([r"\documentclass{article}", packages, r"\begin{document}", body, r"\end{document}"])
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
