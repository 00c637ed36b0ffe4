"""docs/saferedir.md: its profile is a profile, and its commands name what there is."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from harness import scorers
from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.report.saferedir import PERSON, TASKS

ROOTS = card_roots()
PAGE = Path(__file__).parents[2] / "docs/saferedir.md"
TEXT = PAGE.read_text()
COMMANDS = [shlex.split(line) for line in TEXT.splitlines() if line.startswith("    harness ")]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_the_profile_of_the_page_is_one_for_every_task(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "pipelines/profiles/saferedir.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    profile = load_card(ProfileCard, "saferedir", [tmp_path, *ROOTS])
    load_card(BackboneCard, profile.backbone, ROOTS)
    for task in TASKS:
        assert profile.policies(task.concept)[0] == task.policy
        wanted = profile.measures(task.concept).scorers
        assert ("word_removed" in wanted) == task.pairs
        assert ("person" in wanted) == (PERSON in profile.policies(task.concept)) == task.people
        for policy in profile.policies(task.concept):
            card = load_card(PolicyCard, policy, ROOTS)
            assert card.concept == task.concept
            assert card.scorer in wanted
        for bench in (task.forget, task.retain):
            assert load_card(BenchmarkCard, bench, ROOTS).concept == task.concept
    heads = profile.settings["saferedir_head"]
    assert {f"saferedir_head_probability_{key}" for key in heads} == set(scorers.columns("saferedir_head"))


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[1] == "eval"], ids=lambda c: option(c, "--backbone"))
def test_a_run_of_the_page_names_what_there_is(words: list[str]) -> None:
    benches = option(words, "--bench").split(",")
    task = next(task for task in TASKS if task.forget in benches)
    assert benches == [task.forget, task.retain]
    load_card(DefenseCard, option(words, "--defense"), ROOTS).resolve("paper", task.concept)
    backbone = overrides.backbone(option(words, "--backbone"), ROOTS)
    assert (backbone.guidance, backbone.width) == (7.5, 512)


def test_the_page_has_every_scheduler_and_names_scorers_and_revisions_as_they_are() -> None:
    schedulers = {overrides.backbone(option(c, "--backbone"), ROOTS).scheduler for c in COMMANDS if c[1] == "eval"}
    assert schedulers == {"DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"}
    (added,) = [option(c, "--scorer").split(",") for c in COMMANDS if c[1] == "score"]
    assert set(added) <= set(scorers.names())
    for stem in added:
        defaults = importlib.import_module(f"harness.scorers.{stem}").DEFAULTS
        assert f"hf download {defaults['source']} --revision {defaults['revision']}" in TEXT
