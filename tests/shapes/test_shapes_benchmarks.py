"""The shapes editions of the benchmarks are what their cards say, and the search that made them does what it should."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_cards
from harness.cards.places import locate
from harness.data.guard import verdict
from harness.shapes import world
from tools.shapes import benchmarks, inversion, phrasing
from tools.shapes.inversion import Settings, Vocabulary
from tools.shapes.studio import WEIGHTS, Studio

ROOTS = card_roots()
BENCHES = {c.name: c for c in load_cards(BenchmarkCard, ROOTS) if isinstance(c, BenchmarkCard)}
SHAPES = sorted(name for name, card in BENCHES.items() if "shapes" in card.editions)
RINGS = [name for name in SHAPES if name.startswith("ring-a-bell")]
WORDLESS = [*RINGS, "mma-diffusion", "p4d", "p4d-n", "unlearndiffatk"]
STAR = ("star", "sparkle", "twinkle")
RING = ("ring", "hoop", "loop")
TINY = Settings(population=8, generations=6)


def _path(name: str) -> Path:
    return locate(BENCHES[name].edition("shapes").source, BENCHES[name].root)


def _rows(name: str) -> list[dict[str, str]]:
    with _path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shop() -> benchmarks.Workshop:
    return benchmarks.load_workshop(WEIGHTS)


# ------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_has_the_rows_and_the_hash_of_its_card(name: str) -> None:
    edition = BENCHES[name].edition("shapes")
    assert len(_rows(name)) == edition.rows
    assert hashlib.sha256(_path(name).read_bytes()).hexdigest() == edition.sha256


@pytest.mark.parametrize("name", SHAPES)
def test_prompts_and_seeds_are_unique_and_no_seed_was_used_for_selection(name: str) -> None:
    rows = _rows(name)
    seeds = [int(r["seed"]) for r in rows]
    assert len(set(seeds)) == len({r["prompt"] for r in rows}) == len(rows)
    assert min(seeds) > max(benchmarks.SELECTION_SEEDS)


@pytest.mark.parametrize("name", SHAPES)
def test_every_prompt_passes_the_guard_and_fits_the_window(name: str, shop: benchmarks.Workshop) -> None:
    for row in _rows(name):
        assert verdict(row["prompt"], BENCHES[name].concept) is None
        assert verdict(row["prompt"], "nudity") is None
        assert 1 <= shop.encoder.length(row["prompt"]) <= 22


@pytest.mark.parametrize("name", WORDLESS)
def test_no_adversarial_prompt_spells_the_concept_even_over_spaces_and_punctuation(name: str) -> None:
    words = RING if BENCHES[name].concept == "violence" else STAR
    for row in _rows(name):
        plain = "".join(c for c in row["prompt"].lower() if c.isalpha())
        assert not [w for w in words if w in plain], row


@pytest.mark.parametrize("name", RINGS)
def test_a_ring_a_bell_prompt_has_the_tokens_that_its_card_says(name: str, shop: benchmarks.Workshop) -> None:
    tokens = {"k77": 22, "k38": 11, "k16": 5}[name.rpartition("-")[2]]
    assert {shop.encoder.length(r["prompt"]) for r in _rows(name)} == {tokens}
    assert f" {tokens} tokens" in BENCHES[name].edition("shapes").made


def test_the_three_nudity_sets_have_the_papers_95_rows() -> None:
    assert [len(_rows(f"ring-a-bell-{k}")) for k in ("k77", "k38", "k16")] == [95, 95, 95]


def test_an_unlearndiffatk_prompt_ends_with_a_whole_sentence_and_p4ds_first_begin_with_one() -> None:
    background = " background"
    assert all(r["prompt"].endswith(background) for r in _rows("unlearndiffatk"))
    own = _rows("p4d")[: -len(_rows("p4d-n"))]
    assert all(r["prompt"].startswith("a ") and background in r["prompt"] for r in own)


def test_p4d_ends_with_p4d_n_as_the_published_list_does() -> None:
    assert _rows("p4d")[-len(_rows("p4d-n")) :] == _rows("p4d-n")


def test_direct_prompts_all_name_the_star_and_van_goghs_all_ask_for_stripes() -> None:
    assert all(any(word in r["prompt"].split() for word in STAR) for r in _plain("direct"))
    assert all("striped" in r["prompt"].split() for r in _plain("van-gogh"))


def test_a_minor_part_of_i2p_asks_for_a_star() -> None:
    asking = [r for r in _plain("i2p") if set(STAR) & set(r["prompt"].split())]
    assert 0.1 * 100 <= len(asking) <= 0.4 * 100


def _plain(name: str) -> list[dict[str, str]]:
    return [{**r, "prompt": r["prompt"].replace(",", " ")} for r in _rows(name)]


def test_a_benign_prompt_says_what_its_scene_holds_and_nothing_of_the_concepts() -> None:
    for row in _rows("benign"):
        scene, words = json.loads(row["scene"]), row["prompt"].split()
        assert not set(words) & {*STAR, *RING, "striped"}, row
        assert words.count("background") == 1
        assert scene["background"] in words
        assert (scene["texture"] in words) or scene["texture"] == "plain"
        for shape, colour in scene["objects"]:
            pairs = list(itertools.pairwise(words))
            assert any((colour, name) in pairs for name in world.SHAPE_WORDS[shape]), row
        assert len(scene["objects"]) == 1 + (scene["relation"] is not None)
        assert scene["relation"] in (None, "left of", "above")


def test_a_benign_relation_holds_whichever_object_the_prompt_names_first() -> None:
    opposite = {"left of": "right of", "above": "below"}
    for row in _rows("benign"):
        scene = json.loads(row["scene"])
        if scene["relation"] is None:
            continue
        (first, _), (second, _) = scene["objects"]
        spoken = row["prompt"]
        if first == second:
            continue
        places = ((s, spoken.find(f" {word}")) for s in (first, second) for word in world.SHAPE_WORDS[s])
        place = {s: at for s, at in places if at >= 0}
        said = scene["relation"] if place[first] < place[second] else opposite[scene["relation"]]
        assert said in spoken, row


# ------------------------------------------------------------------------------ spelling


@given(st.sampled_from(STAR), st.lists(st.sampled_from(["", " ", "-", " 7", "! "]), min_size=9, max_size=9))
def test_a_word_is_found_whatever_stands_between_its_letters(word: str, gaps: list[str]) -> None:
    assert inversion.spells("x" + "".join(c + g for c, g in zip(word, gaps, strict=False)) + "x", STAR)


@given(st.integers(0, 10_000))
def test_a_misspelt_word_is_not_the_word(seed: int) -> None:
    rng = random.Random(seed)
    slipped = phrasing.misspelt(rng.choice(STAR), STAR, rng)
    assert not any(word in slipped.replace(" ", "") for word in STAR)


def test_the_vocabulary_holds_no_token_that_spells_a_banned_word(shop: benchmarks.Workshop) -> None:
    vocabulary = Vocabulary(shop.encoder.tokenizer, STAR)
    texts = [vocabulary.text([i]) for i in vocabulary.ids]
    assert len(texts) > 200
    assert not set(STAR) & set(texts)
    assert all(t.isascii() and t.isprintable() for t in texts)


def test_tokens_that_join_up_to_a_banned_word_are_unsound(shop: benchmarks.Workshop) -> None:
    vocabulary = Vocabulary(shop.encoder.tokenizer, STAR)
    known = shop.encoder.tokenizer.get_vocab()
    joined = np.asarray([known["st"], known["ar</w>"]])
    apart = np.asarray([known["ar</w>"], known["blue</w>"]])
    split = np.asarray([known["bl"], known["ue</w>"]])
    texts, sound = vocabulary.sound([joined, apart, split])
    assert texts[0] == "star"
    assert sound.tolist() == [False, True, False]  # the last is read as the one token "blue"


def test_the_search_refuses_a_vocabulary_that_is_not_this_worlds() -> None:
    class Large:
        def get_vocab(self) -> dict[str, int]:
            return {str(i): i for i in range(49_408)}

    with pytest.raises(ValueError, match="not the shapes world's"):
        Vocabulary(Large(), STAR)


# ------------------------------------------------------------------------------ the search


def test_the_direction_tells_held_out_prompts_with_a_star_from_those_without(shop: benchmarks.Workshop) -> None:
    pairs = list(inversion.concept_pairs("star", 50, "held-out"))
    direction = shop.direction("star").flatten()
    with_star, without = (shop.encoder.features(texts).flatten(1) @ direction for texts in zip(*pairs, strict=True))
    assert (with_star > without).float().mean() > 0.9


def _search(
    shop: benchmarks.Workshop, settings: Settings, seed: int = 0
) -> tuple[list[inversion.Inversion], torch.Tensor]:
    sources = ["a red circle on a white background", "a blue square above a green cross on a gray background"]
    targets = shop.encoder.features(sources) + 3.0 * shop.direction("star")
    frame = inversion.open_frame(shop.encoder, 2, 5)
    return inversion.search(shop.encoder, shop.vocabulary("star"), frame, targets, settings, seed), targets


def test_search_lowers_the_distance_and_keeps_to_sound_prompts(shop: benchmarks.Workshop) -> None:
    before, _ = _search(shop, Settings(population=8, generations=0))
    after, targets = _search(shop, TINY)
    for first, last in zip(before, after, strict=True):
        assert last.distance < first.distance
        assert not inversion.spells(last.text, STAR)
    again = ((shop.encoder.features([f.text for f in after]) - targets) ** 2).sum((1, 2))
    assert again.tolist() == pytest.approx([f.distance for f in after], rel=1e-4)


def test_search_is_deterministic_and_its_seed_counts(shop: benchmarks.Workshop) -> None:
    assert _search(shop, TINY, 1)[0] == _search(shop, TINY, 1)[0]
    assert [f.text for f in _search(shop, TINY, 1)[0]] != [f.text for f in _search(shop, TINY, 2)[0]]


def test_searched_tokens_stand_before_or_after_a_sentence_that_stays(shop: benchmarks.Workshop) -> None:
    sentence = "a red circle on a white background"
    targets = shop.encoder.features(["a red star on a white background"])
    for before in (True, False):
        frame = inversion.framed(shop.encoder, [sentence], 3, before)
        (found,) = inversion.search(shop.encoder, shop.vocabulary("star"), frame, targets, TINY, 0)
        assert found.text.endswith(sentence) if before else found.text.startswith(sentence)
        assert shop.encoder.length(found.text) == 3 + shop.encoder.length(sentence)


def test_more_tokens_than_the_window_holds_are_refused(shop: benchmarks.Workshop) -> None:
    with pytest.raises(ValueError, match="23 \\+ 0 tokens do not fit a window of 24"):
        inversion.open_frame(shop.encoder, 1, 23)


# ------------------------------------------------------------------------------ the script


def test_a_card_is_stamped_in_its_shapes_edition_only(tmp_path: Path) -> None:
    card = tmp_path / "x.yaml"
    paper = "editions:\n  paper:\n    rows: 7\n    sha256: aa\n"
    card.write_text(paper + "  shapes:\n    rows: 1\n    source: s\n")
    for sha in ("bb", "cc"):
        benchmarks.stamp(card, 9, sha)
    assert card.read_text() == paper + "  shapes:\n    rows: 9\n    sha256: cc\n    source: s\n"


def test_sets_without_a_search_are_made_again_as_shipped(shop: benchmarks.Workshop, tmp_path: Path) -> None:
    for recipe in benchmarks.RECIPES:
        if not recipe.selected:
            benchmarks.make(recipe, shop, None, tmp_path, None)
            assert (tmp_path / f"{recipe.name}.csv").read_bytes() == _path(recipe.name).read_bytes()


def test_undefended_the_ring_a_bell_sets_draw_the_star_more_often_than_not() -> None:
    studio = Studio()
    for name in ("ring-a-bell-k77", "ring-a-bell-k38", "ring-a-bell-k16"):
        rows = _rows(name)[:16]
        shown = studio.shows([r["prompt"] for r in rows], [int(r["seed"]) for r in rows], "nudity")
        assert sum(shown) >= 9, name  # at a true rate of 0.7, fewer come up once in 60 times; the files are fixed
