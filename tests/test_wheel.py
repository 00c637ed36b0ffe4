"""The wheel stands on its own: cards and weights travel in it, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel unpacked as pip would, and nothing else of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    site = folder / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    return folder


def _call(installed: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True, text=True, env=environment, cwd=installed, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_every_card_and_every_file_of_the_package(installed: Path) -> None:
    (wheel,) = (installed / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("pipelines", "datasets", "reports"):
        cards = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert cards <= {n.removeprefix("harness/_cards/") for n in names}
    files = [p for p in (ROOT / "harness").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.relative_to(ROOT).as_posix() for p in files} <= set(names)  # weights, templates and word lists too
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"harness"}
    assert wheel.stat().st_size <= 20_000_000


@pytest.mark.slow
def test_it_lists_cards_and_evaluates_without_the_checkout(installed: Path) -> None:
    assert str(installed) in _call(installed, "describe", "rece")
    assert "ring-a-bell-k77" in _call(installed, "list", "datasets")
    out = _call(
        installed, "eval", "--defense", "uce", "--bench", "ring-a-bell-k77", "--profile", "shapes",
        "--limit", "2", "--executor", "inline",
    )  # fmt: skip
    assert "subset 2/95" in out
