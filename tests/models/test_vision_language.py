"""Conversations: what is quoted, and that a prompt begins once. Real answers: tests/shapes/test_captioner.py."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import processors

from harness.models import vision_language
from tools.shapes import measure


def test_an_answer_s_own_braces_stay_as_they_are() -> None:
    assert vision_language.fill("{a}: {b}", {"a": "a sign says {b}", "b": "x"}) == "a sign says {b}: x"


@pytest.mark.parametrize("template_begins", [True, False])
def test_a_prompt_begins_once_whether_the_template_or_the_tokenizer_begins_it(template_begins: bool) -> None:
    captioner = vision_language.load({"source": str(measure.WEIGHTS / "captioner"), "micro_batch": 2})
    tokenizer = captioner.processor.tokenizer
    begin = tokenizer.convert_ids_to_tokens(5)
    tokenizer.bos_token = begin
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 5)]
    )
    if template_begins:
        captioner.processor.chat_template = "{{ bos_token }}" + captioner.processor.chat_template
    seen = []
    generate = captioner.model.generate

    def watched(**inputs: object) -> object:
        seen.append(copy.copy(inputs["input_ids"]))
        return generate(**inputs)

    captioner.model.generate = watched
    captioner.converse(
        [np.zeros((32, 32, 3), np.uint8)] * 2,
        [vision_language.Turn("a", "what?", 2), vision_language.Turn("b", "so?", 2)],
    )
    assert len(seen) == 2
    for ids in seen:
        assert ids[:, 0].tolist() == [5, 5]
        assert (ids[:, 1] != 5).all()
