"""Every format of a small table, word for word: `HARNESS_GOLDEN=1 pytest tests/report/test_golden.py` writes them.

The files in ``golden/`` are what the formats gave when a person last looked at them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_samples import filled_table

from harness.report import latex
from harness.report.render import FORMATS, render

GOLDEN = Path(__file__).parent / "golden"
SUFFIXES = {"terminal": ".txt", "md": ".md", "latex": ".tex", "csv": ".csv", "json": ".json"}


@pytest.mark.parametrize("profile", ["paper", "shapes"])
@pytest.mark.parametrize("form", SUFFIXES)
def test_a_format_gives_what_a_person_has_looked_at(tmp_path: Path, form: str, profile: str) -> None:
    text = render(filled_table(tmp_path, profile), form) + "\n"
    for folder in (str(tmp_path), latex.escape(str(tmp_path))):
        text = text.replace(folder, "/somewhere")
    path = GOLDEN / f"{profile}{SUFFIXES[form]}"
    if os.environ.get("HARNESS_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_format_of_text_has_a_file() -> None:
    assert set(FORMATS) - {"html"} == set(SUFFIXES)
