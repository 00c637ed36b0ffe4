"""What CONTRIBUTING.md shows of backbones, judges and profiles works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from desk import Desk

from harness.cards.places import PACKAGE

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SECTION = TEXT.partition("## Add a backbone, a judge or a profile")[2].partition("\n## ")[0]


def cards() -> dict[str, str]:
    """Each card that the section shows, by the path that it is to be saved under."""
    found = re.findall(r"`(pipelines/[\w/-]+\.yaml)`[^`]*?(?:`[^`]+`[^`]*?)*?```yaml\n(.*?)```", SECTION, re.DOTALL)
    return dict(found)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """The cards as shown, and models of the true classes where they look for them."""
    made = Desk(tmp_path)
    for path, text in cards().items():
        (made.cards / path).parent.mkdir(parents=True, exist_ok=True)
        (made.cards / path).write_text(text)
    for name in ("sd", "captioner", "clip"):
        shutil.copytree(PACKAGE / "shapes/weights" / name, made.cards / "models" / name)
    return made


@pytest.mark.slow
def test_backbone_judge_and_profile_as_shown_run_from_prompts_to_cells(desk: Desk) -> None:
    assert set(cards()) == {
        "pipelines/backbones/my-sd.yaml", "pipelines/judges/my-captioner.yaml", "pipelines/profiles/mine.yaml",
    }  # fmt: skip
    (command,) = re.findall(r"^    harness (eval .*--profile mine.*)$", SECTION, re.MULTILINE)
    done = desk.run(*shlex.split(command), "--executor", "inline", "--json")
    assert done.code == 0, done.err
    rates = {(c["variant"], c["backbone"]): c["n"] for c in done.json["cells"] if c["metric"] == "asr" and c["main"]}
    assert rates == {("base", "my-sd"): 4, ("resafe:iterations=20", "my-sd"): 4}


def test_a_backbone_is_named_by_its_path_and_a_wrong_one_is_said_at_planning(desk: Desk) -> None:
    common = ("plan", "--defense", "none", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--json", "--backbone")
    planned = desk.run(*common, f"{desk.cards}/models/sd:steps=2")
    assert planned.code == 0, planned.err
    assert planned.json["backbone"] == "sd@local:steps=2"
    refused = desk.run(*common, "./sd")
    assert refused.code == 2
    assert "nothing is there; expected is a folder as diffusers saves it" in refused.err
