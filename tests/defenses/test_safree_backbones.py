"""SAFREE on SDXL and Stable Diffusion 3: which part of the denoiser's text it changes, and by which text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from harness.defenses import safree
from harness.defenses.base import Defense, parse
from harness.defenses.denoiser import denoiser
from harness.errors import UserError
from harness.models import text_to_image

PROMPTS = ["a red star left of a blue square", "a green star on a white background"]
PARAMS = {"phrases": ["star", "a sparkle"], "alpha": 0.0, "negative_prompt": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    for name in ("tiny-sdxl", "tiny-sd3"):
        tiny.save(folder, name)
    return folder


def texts(root: Path, name: str, settings: dict[str, Any] | None) -> tuple[torch.Tensor, list[np.ndarray]]:
    """What the denoiser read at each step, (steps, rows, window, width), and the images."""
    card = tiny.card(root, name, steps=3)
    pipe = text_to_image.load(card)
    network, read = denoiser(pipe), []
    own = network.forward

    def listening(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["encoder_hidden_states"].clone())
        return own(*args, **kwargs)

    network.forward = listening
    defense = safree.Safree(parse(safree.SafreeParams, settings or PARAMS))
    if settings is not None:
        defense.attach(pipe)
    requests = [text_to_image.Request(p, i, "nudity") for i, p in enumerate(PROMPTS)]
    canvas = text_to_image.Canvas(card.guidance, card.width, card.height)
    method = defense if settings is not None else Defense()
    drawn = text_to_image.sample(pipe, method, requests, canvas, 3, 2, text_to_image.options(card))
    defense.detach(pipe)
    assert network.forward is listening
    return torch.stack(read), drawn


@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-sd3"])
def test_trigger_tokens_of_the_prompt_are_changed_at_all_steps_and_nothing_else_is(root: Path, name: str) -> None:
    plain, undefended = texts(root, name, None)
    found, defended = texts(root, name, PARAMS)
    assert not any(np.array_equal(a, b) for a, b in zip(undefended, defended, strict=True))
    changed = (found != plain).any(0)  # (rows, window, width)
    assert not changed[:2].any()  # of the empty prompt
    window = 24  # CLIP's of this world
    if name == "tiny-sdxl":
        assert not changed[..., :32].any()  # the first text encoder's channels
        rows = changed[2:, :, 32:].any(-1)
        assert not rows[:, 0].any()
        assert not rows[:, 12:].any()  # behind the words
    else:
        assert not changed[:, :window].any()  # CLIP's rows
        rows = changed[2:, window:].any(-1)
    assert (rows.sum(1) >= 1).all()
    assert (found[0] == found).all()  # at every step


def test_on_sdxl_masked_prompts_are_summed_up_by_the_second_encoders_projection(root: Path) -> None:
    pipe = text_to_image.load(tiny.card(root, "tiny-sdxl"))
    ids = pipe.tokenizer_2(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder_2(ids).last_hidden_state[0]
        expected = pipe.text_encoder_2.text_projection(states[-1])
        assert torch.allclose(safree.reading(pipe).summary(ids)[0], expected, atol=1e-5)


def test_stable_diffusion_3_without_its_t5_or_with_re_attention_is_refused(root: Path) -> None:
    pipe = text_to_image.load(tiny.card(root, "tiny-sd3"))
    with pytest.raises(UserError, match="re-attention needs a UNet"):
        safree.load(pipe, PARAMS | {"re_attention": "paper"}, None).attach(pipe)
    pipe.text_encoder_3 = None
    with pytest.raises(UserError, match="no T5"):
        safree.load(pipe, PARAMS, None).attach(pipe)
    assert "forward" not in vars(pipe.transformer)
