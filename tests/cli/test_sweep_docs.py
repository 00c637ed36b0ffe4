"""docs/sweeps.md: every command and card that it prints is one that the program takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from harness.cards.load import load_card
from harness.cards.sweep import SweepCard
from harness.cli import app
from harness.cli.repeated import watch
from harness.pipeline.sweep_grid import CardGrid

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/sweeps.md").read_text()
BLOCKS = [line[4:] for line in TEXT.splitlines() if line.startswith("    ")]
README = [line.strip().partition("    #")[0] for line in (ROOT / "README.md").read_text().splitlines()]
COMMANDS = [line for line in (*BLOCKS, *README) if line.startswith("harness sweep")]


def test_the_documents_have_commands() -> None:
    assert len(COMMANDS) >= 6
    assert any("submit" in line for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_printed_command_plans(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    watch(typer.main.get_command(app)).main(
        words if "--dry-run" in words else [*words, "--dry-run"], standalone_mode=False
    )
    assert "computed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_printed_card_is_one(tmp_path: Path) -> None:
    start = next(i for i, line in enumerate(BLOCKS) if line.startswith("summary:"))
    lines = BLOCKS[start:]
    end = next(i for i, line in enumerate(lines) if line.startswith("harness"))
    folder = tmp_path / "pipelines/sweeps"
    folder.mkdir(parents=True)
    (folder / "printed.yaml").write_text("\n".join(lines[:end]) + "\n")
    card = load_card(SweepCard, "printed", [tmp_path])
    assert len(CardGrid(card).under({}, {}, None).combinations()) == 2 * 3 * 2
