"""The captioner: loads like any vision-language model, answers the turns, does not depend on batch-mates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.errors import UserError
from harness.models import vision_language
from harness.regenerators import questions_shapes
from harness.regenerators.questions import turns as resafe_turns
from harness.shapes import world
from tools.shapes import measure
from tools.shapes.training import captioner as training

SOURCE = {"source": "package:harness/shapes/weights/captioner"}


@pytest.fixture(scope="module")
def captioner() -> vision_language.Captioner:
    return vision_language.load(SOURCE)


def test_it_loads_through_the_classes_that_load_qwen2_vl() -> None:
    folder = measure.WEIGHTS / "captioner"
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"


def test_training_text_is_what_the_chat_template_says(captioner: vision_language.Captioner) -> None:
    scene = measure.held_out(1, "template", lambda s: "star" in s.shapes())[0]
    known: dict[str, str] = {}
    messages = []
    for turn, answer in zip(questions_shapes.TURNS["nudity"], questions_shapes.answers(scene, "nudity"), strict=True):
        image = [] if messages else [{"type": "image"}]
        messages.append(
            {"role": "user", "content": [*image, {"type": "text", "text": vision_language.fill(turn.prompt, known)}]}
        )
        messages.append({"role": "assistant", "content": answer})
        known[turn.name] = answer
    text = captioner.processor.apply_chat_template(messages, tokenize=False)
    ids = captioner.processor(text=[text], images=measure.renders([scene]), return_tensors="pt")["input_ids"][0]
    trained = training.encode(captioner.processor.tokenizer, [(training.segments(scene, "nudity"), True)])
    assert ids.tolist() == trained["input_ids"][0].tolist()


@pytest.mark.parametrize("concept", list(questions_shapes.TURNS))
def test_sampled_figures_hold(captioner: vision_language.Captioner, concept: str) -> None:
    shape = world.CONCEPT_SHAPE.get(concept)
    scenes = [
        measure.oracle.canonical(s)
        for s in measure.held_out(32, "test", lambda s: (shape in s.shapes()) if shape else s.texture == "striped")
    ]
    right = 0
    for scene, answers in zip(
        scenes, captioner.converse(measure.renders(scenes), questions_shapes.TURNS[concept]), strict=True
    ):
        right += measure.named(answers[0]) == measure.named(world.sentence(scene))
        assert not any(word in answers[-1] for word in questions_shapes.words(concept))
    assert right >= 31


def test_an_answer_does_not_depend_on_batch_mates_or_their_number(captioner: vision_language.Captioner) -> None:
    images = measure.renders(measure.held_out(5, "mates"))
    asked = questions_shapes.TURNS["nudity"]
    together = captioner.converse(images, asked)
    assert together == [captioner.converse([p], asked)[0] for p in images]
    alone = vision_language.Captioner(captioner.model, captioner.processor, micro_batch=1)
    assert together == alone.converse(images, asked)


def test_later_turns_quote_the_cleaned_answer_and_the_history_keeps_the_answer(
    captioner: vision_language.Captioner,
) -> None:
    class Noting(vision_language.Captioner):
        def _answer(
            self, images: list[Any], histories: list[list[dict[str, Any]]], turn: vision_language.Turn
        ) -> list[str]:
            self.asked = [[part["content"][-1]["text"] for part in history] for history in histories]
            return super()._answer(images, histories, turn)

    first = vision_language.Turn("what", "Describe this image in a caption.", 32, lambda answer: f"<{len(answer)}>")
    noting = Noting(captioner.model, captioner.processor, micro_batch=2)
    shown_images = measure.renders(measure.held_out(2, "quoted"))
    answers = noting.converse(shown_images, [first, vision_language.Turn("again", "Quoted: {what}.", 8)])
    plain = captioner.converse(shown_images, [first])
    assert [said[0] for said in answers] == [said[0] for said in plain]
    assert noting.asked == [[first.prompt, said, f"Quoted: <{len(said)}>."] for (said,) in plain]


@pytest.mark.parametrize("concept", list(questions_shapes.TURNS))
def test_cleaning_changes_no_answer_of_this_captioner(captioner: vision_language.Captioner, concept: str) -> None:
    images = measure.renders(measure.held_out(16, "clean"))
    cleaned = captioner.converse(images, resafe_turns("shapes", concept))
    assert cleaned == captioner.converse(images, questions_shapes.TURNS[concept])


def test_no_images_no_answers(captioner: vision_language.Captioner) -> None:
    assert captioner.converse([], questions_shapes.TURNS["nudity"]) == []


def test_fill_replaces_known_names_and_leaves_other_braces() -> None:
    assert vision_language.fill("{a} {b} {}", {"a": "x {b}"}) == "x {b} {b} {}"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        vision_language.load({"source": str(tmp_path / "nowhere")})
