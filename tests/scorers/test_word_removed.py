"""CLIP score without the concept's words: beside clip_score on texts stripped by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import scorers
from harness.errors import UserError
from harness.scorers import word_removed
from harness.scorers.batching import Image
from harness.scorers.word_removed import Left, remove
from harness.shapes import world

SHAPES = "package:harness/shapes/weights/clip"
BOTH = ("naked", "nude", "with Van Gogh style")


def drawn(count: int) -> list[Image]:
    rng = random.Random(3)
    return [np.asarray(world.render(world.sample_scene(rng), rng)) for _ in range(count)]


def test_an_image_is_scored_against_what_is_left_of_its_prompt() -> None:
    texts = ["a red STAR on a white background", "a blue ring", "starry star", ""]
    stripped = ["a red on a white background", "a blue ring", "starry", ""]
    images = drawn(4)
    found = scorers.load("word_removed", {"source": SHAPES, "words": ["star"], "micro_batch": 3})(images, texts)
    plain = scorers.load("clip_score", {"source": SHAPES, "micro_batch": 3})(images, stripped)
    for column in ("cosine", "percent", "cut", "error"):
        assert found[f"word_removed_{column}"] == plain[f"clip_score_{column}"]
    assert found["word_removed_count"] == [1, 0, 1, 0]
    for name, kind in scorers.columns("word_removed").items():
        assert pa.array(found[name], type=kind).null_count == 0


def test_a_prompt_with_the_words_and_one_without_give_one_image_one_score() -> None:
    (image,) = drawn(1)
    found = scorers.load("word_removed", {"source": SHAPES, "words": ["star"]})(
        [image, image], ["a red star on a black background", "a red on a black background"]
    )
    assert found["word_removed_percent"][0] == found["word_removed_percent"][1]
    assert found["word_removed_count"] == [1, 0]


def test_scores_do_not_depend_on_batch_mates_and_gaps_stay_gaps() -> None:
    images = drawn(5)
    texts: list[str | None] = ["a red star", None, "a star star", "a ring", "a blue star"]
    scorer = scorers.load("word_removed", {"source": SHAPES, "words": ["star"], "micro_batch": 4})
    together = scorer(images, texts)
    assert together["word_removed_count"] == [1, None, 2, 0, 1]
    assert together["word_removed_percent"][1] is None
    alone = [scorer([i], [t])["word_removed_percent"][0] for i, t in zip(images, texts, strict=True)]
    assert alone == together["word_removed_percent"]
    bad = scorer([np.zeros((2, 2), np.uint8)], ["a star"])
    assert (bad["word_removed_error"], bad["word_removed_count"]) == (["not-an-image"], [None])


@pytest.mark.parametrize(
    ("text", "left", "hits"),
    [
        ("one Naked  two", "one two", 1),
        ("nude. Nude, denuded nudes", ". , denuded nudes", 2),
        ("a field at noon with Van Gogh style", "a field at noon", 1),
        ("a field with  van gogh Style, at noon", "a field , at noon", 1),
        ("a portrait of Van Gogh", "a portrait of Van Gogh", 0),
        ("", "", 0),
    ],
)
def test_whole_words_are_taken_out_in_any_case(text: str, left: str, hits: int) -> None:
    assert remove(text, BOTH) == Left(left, hits)


def test_a_comma_that_is_left_behind_a_blank_changes_no_token() -> None:
    """As said where blanks are tidied; by the tokenizer of CLIP's class."""
    from transformers import AutoTokenizer

    from harness.models.loading import place

    tokenizer = AutoTokenizer.from_pretrained(place(SHAPES))
    assert tokenizer("a red ring , a star")["input_ids"] == tokenizer("a  red ring, a star")["input_ids"]


@given(st.lists(st.sampled_from(["a", "tree", "naked", "nude", "by", "night", "with Van Gogh style"]), max_size=12))
def test_what_is_left_are_the_other_words_in_order(words: list[str]) -> None:
    kept = [word for word in words if word not in BOTH]
    found = remove("  ".join(words), BOTH)
    assert found == Left(" ".join(kept), len(words) - len(kept))
    assert remove(found.text, BOTH) == Left(found.text, 0)


@pytest.mark.parametrize("words", [[], "star", [1], [" "]])
def test_words_that_are_none_are_refused(words: Any) -> None:
    with pytest.raises(UserError, match="not a list of words"):
        scorers.load("word_removed", {"source": SHAPES, "words": words})


def test_every_concepts_words_are_taken_out_by_default() -> None:
    assert set(word_removed.words_of({})) == {word for own in word_removed.WORDS.values() for word in own}
    assert word_removed.words_of({"words": ["star"]}) == ("star",)
