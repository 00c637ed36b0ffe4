"""The package that CONTRIBUTING.md shows, built and installed offline, and used as its author would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from outside_package import install, shown, with_scorer

MOST_LINES = 40


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the shown package, scorer and all, is installed in; commands work beside it."""
    return install(with_scorer(), tmp_path_factory.mktemp("package"))


def call(installed: Path, *words: str, code: int = 0) -> str:
    """What a command prints, with the package on the path."""
    path = os.pathsep.join([str(installed), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True, text=True, cwd=installed.parent, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


def test_it_is_as_small_as_said() -> None:
    files = shown()
    assert set(files) == {"pyproject.toml", "deaf/__init__.py", "deaf/pipelines/defenses/deaf.yaml"}
    assert sum(len(content.splitlines()) for content in files.values()) <= MOST_LINES


def test_list_shows_it_with_its_package(installed: Path) -> None:
    listed = json.loads(call(installed, "list", "--json"))
    assert listed["provided_by"] == {"defenses": {"deaf": "deaf 1.0"}, "scorers": {"contrast": "deaf 1.0"}}
    assert listed["defenses"]["deaf"] == "the denoiser hears less of every prompt"


@pytest.mark.parametrize("name", ["deaf", pytest.param("contrast", marks=pytest.mark.slow)])
def test_it_keeps_the_contract(installed: Path, name: str) -> None:
    said = json.loads(call(installed, "conformance", name, "--json"))
    assert said["conforms"]
    (trial,) = said["trials"]
    assert trial["provided_by"] == "deaf 1.0"
    assert "pass" in {rule["outcome"] for rule in trial["rules"]}
    zero = next(rule for rule in trial["rules"] if rule["rule"] == "zero")
    assert zero["outcome"] == ("pass" if name == "deaf" else "does not apply")


@pytest.mark.slow
def test_a_broken_contract_is_said_by_the_exit_code(installed: Path, tmp_path: Path) -> None:
    files = with_scorer()
    files["deaf/contrast.py"] = files["deaf/contrast.py"].replace("float(i.std())", "float(i[20, 20, 0])")
    broken = install(files, tmp_path)
    said = call(broken, "conformance", "contrast", code=1)
    assert "FAIL  degenerate" in said
    assert "raises IndexError" in said


EVAL = ("eval", "--defense", "deaf", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--limit", "4")


@pytest.mark.slow
def test_it_is_evaluated(installed: Path) -> None:
    out = call(installed, *EVAL, "--executor", "inline", "--regen", "none", "--json")
    cells = json.loads(out)["cells"]
    assert {cell["defense"] for cell in cells} == {"none", "deaf"}
    run = Path(json.loads(out)["paths"]["scores"]).parent
    record = json.loads((installed.parent / run / "run.json").read_text())
    assert '"deaf": "1.0"' in json.dumps(record)


@pytest.mark.slow
@pytest.mark.ray
def test_workers_import_it(installed: Path) -> None:
    words = (*EVAL, "--regen", "none", "--workers", "2", "--json", "--store", "by-ray", "--out", "runs-by-ray")
    inline = call(installed, *EVAL, "--executor", "inline", "--regen", "none", "--json", "--out", "runs-inline")
    assert json.loads(call(installed, *words))["cells"] == json.loads(inline)["cells"]
