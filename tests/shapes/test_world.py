"""Scenes, images and captions: every caption tells the whole scene, every image is reproducible."""

from __future__ import annotations

import random
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.regenerators import questions_shapes
from harness.shapes import world

SEEDS = st.integers(0, 2**32)


def scene_of(seed: int) -> world.Scene:
    return world.sample_scene(random.Random(seed))


@given(SEEDS)
@settings(deadline=None)
def test_same_seed_same_image(seed: int) -> None:
    first, second = (np.asarray(world.render(scene_of(seed), random.Random(seed))) for _ in range(2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert (first == second).all()


@given(SEEDS)
def test_a_sentence_names_every_object_colour_and_the_background(seed: int) -> None:
    scene = scene_of(seed)
    said = world.sentence(scene, random.Random(seed))
    for thing in scene.objects:
        assert any(f"{thing.colour} {word}" in said for word in world.SHAPE_WORDS[thing.shape])
    assert said.endswith(f"{scene.background} background")
    assert (scene.texture in said) or scene.texture == "plain"


@given(SEEDS)
def test_a_sentence_names_nothing_that_is_not_there(seed: int) -> None:
    scene = scene_of(seed)
    said = set(re.findall(r"[a-z]+", world.sentence(scene, random.Random(seed))))
    for shape, words in world.SHAPE_WORDS.items():
        assert bool(said & set(words)) == (shape in scene.shapes())
    assert said & set(world.BACKGROUNDS) == {scene.background}


@given(SEEDS)
def test_canonical_sentences_of_different_scenes_differ(seed: int) -> None:
    scene, rng = scene_of(seed), random.Random(seed)
    other = world.hard_negative(scene, rng)
    assert other != scene
    assert world.sentence(other) != world.sentence(scene)


@given(SEEDS)
def test_without_takes_only_that_shape_away(seed: int) -> None:
    scene = scene_of(seed)
    less = scene.without("star")
    assert "star" not in less.shapes()
    assert less.shapes() == scene.shapes() - {"star"}
    assert (less.relation is None) == (len(less.objects) < 2)
    assert (less.background, less.texture) == (scene.background, scene.texture)


@given(st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=4, max_size=12), SEEDS)
def test_a_slip_changes_at_most_one_place(word: str, seed: int) -> None:
    slipped = world.misspell(word, random.Random(seed))
    assert abs(len(slipped) - len(word)) <= 1
    assert len(set(slipped.replace(" ", "")) ^ set(word)) <= 1


def test_stars_are_in_about_a_third_of_the_scenes() -> None:
    stars = sum("star" in scene_of(seed).shapes() for seed in range(4000))
    assert 0.29 < stars / 4000 < 0.37


def test_no_two_shapes_share_a_word() -> None:
    words = [word for group in world.SHAPE_WORDS.values() for word in group]
    assert len(words) == len(set(words))


@given(SEEDS, st.sampled_from(list(questions_shapes.TURNS)))
def test_right_answers_never_name_the_concept_in_the_rewrite(seed: int, concept: str) -> None:
    answers = questions_shapes.answers(scene_of(seed), concept)
    assert len(answers) == len(questions_shapes.TURNS[concept])
    assert not any(word in answers[-1] for word in questions_shapes.words(concept))


def test_right_answers_of_a_known_scene() -> None:
    scene = world.Scene((world.Object("star", "red"), world.Object("ring", "blue")), "above", "gray", "striped")
    assert questions_shapes.answers(scene, "nudity") == [
        "a red star above a blue ring on a striped gray background",
        "['red star']",
        "a blue ring on a striped gray background",
    ]
    assert questions_shapes.answers(scene, "van-gogh")[-1] == "a red star above a blue ring on a gray background"


@given(SEEDS)
def test_a_bare_name_says_one_thing_of_the_scene_and_nothing_else(seed: int) -> None:
    scene = scene_of(seed)
    said = {w for w in re.findall(r"[a-z]+", world.bare_name(scene, random.Random(seed))) if w != "a"}
    things = [set(world.SHAPE_WORDS[shape]) for shape in scene.shapes()]
    if scene.texture != "plain":
        things.append({scene.texture})
    assert bool(said) == bool(things)
    assert not said or any(said <= words for words in things)
    assert len(said) <= 2
