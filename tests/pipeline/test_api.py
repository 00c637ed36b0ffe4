"""The harness from Python: the documentation's notebook runs, and mistakes are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pyarrow as pa
import pytest
from nbclient import NotebookClient

import harness
from harness.errors import UserError
from harness.pipeline import api

NOTEBOOK = Path(__file__).parents[2] / "docs/python.ipynb"


def test_the_documented_notebook_runs_and_prints_only_what_its_cells_end_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [o.text for o in outputs if o.output_type == "stream"] == []
    assert "sld-medium" in outputs[-1].data["text/plain"]
    (folder,) = (tmp_path / "runs").iterdir()
    run = harness.load_run(folder, tmp_path / ".harness/store")
    assert {(c.defense, c.n) for c in run.cell_list() if c.main and c.metric == "asr"} == {
        ("none", 2),
        ("sld-medium", 2),
    }
    assert run.scores().num_rows == 4
    assert [i.row_id for i in run.images("none")] == ["direct/00000", "direct/00001"]
    assert isinstance(run.cells(), pa.Table)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, harness\nprint(sorted({'torch', 'ray', 'pyarrow', 'diffusers', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no argument 'limits' \(further ones: .*limit"):
        api.evaluate(defense="none", bench="direct", profile="shapes", limits=2)
    with pytest.raises(UserError, match="no complete run there"):
        harness.load_run(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        harness.evalute  # noqa: B018
