"""``harness plan`` on a machine that has neither weights nor prompts: the cost is known before the download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache of the hub and no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def plan(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", "--num-gpus", "0", *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def plan_json(*words: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(plan(*words, "--json"))
    return summary


def test_the_plan_stands_beside_what_is_missing(bare: Path) -> None:
    summary = plan_json("--defense", "rece", "--bench", "i2p", "--power")
    assert summary["rows"] == 2 * 4703
    assert summary["images_to_draw"] == 2 * 2 * 4703  # rece and none, and what ReSafe makes of each
    assert summary["hours"] > 0
    for command in ("fetch bench i2p", "fetch weights sd-1-4", "fetch weights qwen2-vl-7b"):
        assert any(command in line for line in summary["missing"])
    assert summary["unread"] == ["i2p"]
    assert summary["power"]
    text = plan("--defense", "rece", "--bench", "i2p")
    assert "missing benchmark i2p" in text
    assert "only the number of rows is known" in text
    assert list(bare.iterdir()) == []


@pytest.mark.parametrize("words", [("--limit", "10"), ("--ids", "17"), ("--category", "sexual")])
def test_a_part_of_prompts_that_are_not_here_can_be_planned(bare: Path, words: tuple[str, ...]) -> None:
    rows = {"--limit": 10, "--ids": 1, "--category": 4703}[words[0]]
    assert plan_json("--defense", "none", "--bench", "i2p", "--regen", "none", *words)["rows"] == rows


def test_of_the_embedded_world_nothing_is_missing(bare: Path) -> None:
    summary = plan_json("--defense", "rece", "--bench", "ring-a-bell-k77", "--profile", "shapes")
    assert (summary["missing"], summary["unread"]) == ([], [])


def test_a_dry_run_is_the_plan_and_a_run_is_still_refused(bare: Path) -> None:
    words = ("--defense", "none", "--bench", "i2p", "--num-gpus", "0")
    dry = CliRunner().invoke(app, ["eval", *words, "--dry-run", "--json"])
    assert json.loads(dry.stdout) == plan_json("--defense", "none", "--bench", "i2p")
    real = CliRunner().invoke(app, ["eval", *words, "--executor", "inline"])
    assert isinstance(real.exception, UserError)
    assert "fetch weights sd-1-4" in str(real.exception)
    assert list(bare.iterdir()) == []
