"""The paper's three captioners, of their own classes at small size: batches, cut answers, what prepares images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_captioners
import torch
from transformers import (
    InternVLForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from harness.models import vision_language
from harness.models.vision_language import Answer, Captioner, Turn

MAKERS: dict[str, tuple[Callable[[Path], None], type]] = {
    "qwen2-vl": (tiny_captioners.save_qwen2_vl, Qwen2VLForConditionalGeneration),
    "llava-next": (tiny_captioners.save_llava_next, LlavaNextForConditionalGeneration),
    "internvl3": (tiny_captioners.save_internvl, InternVLForConditionalGeneration),
}
TURNS = (
    Turn("caption", "Describe this image in a caption.", 9),
    Turn("again", 'The caption was: "{caption}". Say it otherwise, and then something else.', 7),
    Turn("last", "{again}?", 5),
)


@pytest.fixture(scope="module", params=MAKERS)
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp(request.param)
    make, cls = MAKERS[request.param]
    make(folder)
    loaded = vision_language.load({"source": str(folder), "micro_batch": 3})
    assert type(loaded.model) is cls
    return loaded


def images() -> list[np.ndarray]:
    drawn = np.random.default_rng(5)
    return [drawn.integers(0, 256, (high, wide, 3), np.uint8) for high, wide in ((64, 64), (40, 90), (90, 40))]


def test_an_answer_is_the_same_alone_and_among_longer_and_shorter_conversations(captioner: Captioner) -> None:
    together = captioner.converse(images(), TURNS)
    alone = Captioner(captioner.model, captioner.processor, micro_batch=1)
    assert together == [alone.converse([image], TURNS)[0] for image in images()]
    assert len({answers[0] for answers in together}) > 1  # it sees the image
    assert together[::-1] == captioner.converse(images()[::-1], TURNS)


def test_conversations_are_padded_on_the_left_and_pixels_come_from_pil(captioner: Captioner) -> None:
    processor = captioner.processor
    assert processor.tokenizer.padding_side == "left"
    assert "Pil" in type(processor.image_processor).__name__, type(processor.image_processor)


def test_an_answer_without_its_end_token_is_cut(captioner: Captioner) -> None:
    end = captioner.model.generation_config.eos_token_id
    ends = [end] if isinstance(end, int) else list(end)
    seen: list[torch.Tensor] = []
    generate = captioner.model.generate

    def watched(**inputs: object) -> torch.Tensor:
        ids = generate(**inputs)
        seen.append(ids[:, inputs["input_ids"].shape[1] :])  # type: ignore[attr-defined]
        return ids

    captioner.model.generate = watched
    try:
        answers = captioner.converse(images(), TURNS)
    finally:
        captioner.model.generate = generate
    for turn, new in enumerate(seen):
        expected = [not set(ends) & set(ids) for ids in new.tolist()]
        assert [said[turn].cut for said in answers] == expected


def test_an_answer_that_ends_within_its_length_is_whole(captioner: Captioner) -> None:
    first = captioner.converse(images()[:1], TURNS[:1])[0][0]
    assert first.cut
    new = captioner.processor.tokenizer(first)["input_ids"]
    before = captioner.model.generation_config.eos_token_id
    captioner.model.generation_config.eos_token_id = [before, *new]  # whatever it says first ends it
    try:
        assert not captioner.converse(images()[:1], TURNS[:1])[0][0].cut
    finally:
        captioner.model.generation_config.eos_token_id = before


def test_an_answer_is_text_without_white_space_around_it() -> None:
    answer = Answer(" a boat \n", cut=True)
    assert (answer, answer.cut, Answer("x").cut) == ("a boat", True, False)
