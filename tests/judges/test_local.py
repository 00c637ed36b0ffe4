"""The judge on this machine: real model classes with small random weights, and the captioner of the shapes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import MadeRun
from PIL import Image
from tiny_captioners import save_qwen2_vl

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.errors import UserError
from harness.judges import local
from harness.judges.answers import Answers, Question
from harness.judges.images import read_run
from harness.models import vision_language
from harness.regenerators import questions_shapes
from harness.shapes import world

SHAPES = load_card(JudgeCard, "shapes-captioner", card_roots())


def images(count: int, seed: int = 0) -> list[Image.Image]:
    rng = random.Random(seed)
    return [world.render(world.sample_scene(rng), rng) for _ in range(count)]


def local_card(folder: Path, micro_batch: int, **changes: Any) -> JudgeCard:
    """A judge card of backend local for weights in a folder."""
    content = {
        "name": "small", "path": "/x/small.yaml", "root": "/x", "summary": "s", "backend": "local",
        "source": str(folder), "revision": "0" * 40, "files": ("config.json",), "licence": "none",
        "micro_batch": micro_batch, **changes,
    }  # fmt: skip
    return JudgeCard.model_validate(content)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL's classes at a small size, saved with random weights."""
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen2_vl(folder)
    return folder


def by_hand(captioner: vision_language.Captioner, shown: Sequence[Image.Image], prompt: str, most: int) -> str:
    """One question asked alone, its tokens chosen one by one without a cache."""
    text = f"<|im_start|>user\n{'<|vision_start|><|image_pad|><|vision_end|>' * len(shown)}{prompt}<|im_end|>\n"
    text += "<|im_start|>assistant\n"
    inputs = captioner.processor(text=[text], images=list(shown) or None, return_tensors="pt")
    ends = captioner.model.generation_config.eos_token_id
    said: list[int] = []
    for _ in range(most):
        with torch.inference_mode():
            best = int(captioner.model(**inputs).logits[0, -1].argmax())
        if best == ends:
            break
        said.append(best)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in inputs:
                more = best if name == "input_ids" else int(name == "attention_mask")
                inputs[name] = torch.cat([inputs[name], torch.tensor([[more]])], dim=1)
    return str(captioner.processor.tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("each", [0, 1, 2])
def test_answers_of_qwen2_vl_are_those_of_one_question_asked_by_hand(qwen: Path, each: int) -> None:
    captioner = vision_language.load(local_card(qwen, 3).params())
    shown = [images(each, seed) for seed in range(5)]
    prompts = [f"Which image is safer? {'x ' * i}" for i in range(5)]
    got = [
        *local.replies(captioner, shown[:3], prompts[:3], 6),
        *local.replies(captioner, shown[3:], prompts[3:], 6),
    ]
    assert got == [by_hand(captioner, s, p, 6) for s, p in zip(shown, prompts, strict=True)]
    assert len(set(got)) > 1


def test_the_order_of_two_images_reaches_qwen2_vl(qwen: Path) -> None:
    captioner = vision_language.load(local_card(qwen, 1).params())
    prompt = "Which image is safer?"
    answers = set()
    for seed in range(6):
        two = images(2, seed)
        there, back = (local.replies(captioner, [order], [prompt], 8)[0] for order in (two, two[::-1]))
        assert back == by_hand(captioner, two[::-1], prompt, 8)
        answers.add(there == back)
    assert False in answers


def test_a_judge_on_this_machine_answers_and_remembers(qwen: Path, made: MadeRun, tmp_path: Path) -> None:
    found = read_run(made.record, made.store)
    shown = [found.of(row, found.places[0]) for row in found.rows()]
    questions = [
        Question(task="safer", version=1, prompt="Which?", images=(shown[i], shown[i - 1])) for i in range(5)
    ] + [Question(task="faithful", version=1, prompt=f"Which of {i}?") for i in range(3)]
    judge = local.Local(local_card(qwen, 2))
    memory = Answers(tmp_path / "store", judge.identity)
    judge.ask(questions, memory)
    assert memory.unknown(questions) == []
    reply = memory.get(questions[0])
    assert reply is not None
    assert reply.model == "small"  # the card's name: a folder of one's own says nothing elsewhere
    other = local.Local(local_card(qwen, 2, dtype="bfloat16"))
    assert len(Answers(tmp_path / "store", other.identity).unknown(questions)) == 8


def test_one_image_is_described_as_the_captioner_describes_it() -> None:
    captioner = vision_language.load(SHAPES.params())
    shown = images(5)
    turn = questions_shapes.CAPTION
    plain = [said for (said,) in captioner.converse(shown, [turn])]
    asked = local.replies(captioner, [[p] for p in shown], [turn.prompt] * 5, turn.max_new_tokens)
    assert asked == plain
    assert all("background" in said for said in plain)
    assert local.CAPTION.prompt == turn.prompt


def test_weights_that_are_not_here_are_named(tmp_path: Path) -> None:
    card = load_card(JudgeCard, "qwen2-vl-7b", card_roots()).model_copy(update={"source": "nobody/nothing"})
    judge = local.Local(card)
    question = Question(task="faithful", version=1, prompt="1 or 2?")
    with pytest.raises(UserError, match="nobody/nothing.*not on this machine"):
        judge.ask([question], Answers(tmp_path, judge.identity))


def test_a_captioner_of_turns_only_refuses_questions(tmp_path: Path) -> None:
    judge = local.Local(SHAPES)
    with pytest.raises(UserError, match="only knows ReSafe's caption turns"):
        judge.ask([Question(task="safer", version=1, prompt="1 or 2?")], Answers(tmp_path, judge.identity))
