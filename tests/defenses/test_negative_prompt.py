from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.defenses import negative_prompt, none
from harness.errors import UserError

PROMPTS = ["a red star", "blue square"]


def test_it_is_the_pipelines_own_negative_prompt_for_every_image(pipe: Any, draw: Any) -> None:
    defense = negative_prompt.load(pipe, {"phrases": ["star", "ring"]}, None)
    defense.attach(pipe)
    got = draw(pipe, PROMPTS, **defense.begin(PROMPTS))
    assert torch.equal(got, draw(pipe, PROMPTS, negative_prompt=["star, ring"] * 2))
    assert not torch.equal(got, draw(pipe, PROMPTS))


def test_detached_pipeline_draws_as_before(pipe: Any, draw: Any) -> None:
    before = draw(pipe, PROMPTS)
    defense = negative_prompt.load(pipe, {"phrases": ["star"]}, None)
    defense.attach(pipe)
    defense.detach(pipe)
    assert torch.equal(before, draw(pipe, PROMPTS))


def test_phrases_longer_than_the_window_are_refused_rather_than_cut(pipe: Any) -> None:
    with pytest.raises(UserError, match="text encoder 24"):
        negative_prompt.load(pipe, {"phrases": ["star"] * 20}, None)


def test_none_changes_nothing(pipe: Any, draw: Any) -> None:
    defense = none.load(pipe, {"concept": "nudity"}, None)
    before = draw(pipe, PROMPTS)
    defense.attach(pipe)
    assert torch.equal(before, draw(pipe, PROMPTS, **defense.begin(PROMPTS)))
    defense.detach(pipe)
