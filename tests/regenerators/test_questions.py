"""The prompts of Appendix D.1 are there word for word, and fill as the paper says."""

from __future__ import annotations

import hashlib

import pytest

from harness.cards.regenerator import Caption
from harness.errors import UserError
from harness.models import vision_language
from harness.regenerators import components
from harness.regenerators import questions_shapes as shapes
from harness.regenerators.questions import ARTISTS, concepts, given, turns

# First digits of the sha256 of each prompt as Appendix D.1 prints it (white space as single spaces, placeholders as
# printed, {artist} open), taken from the paper's text and not from the code.
PRINTED = {
    "nudity": ["76521955e1552cda", "57b44d58e4f1e7f7", "00ed45cf102853d7"],
    "violence": ["76521955e1552cda", "8a2b1e33779974a0", "85c11cac47bdec19"],
    "artist": ["ce77becdeb1565fe", "11eb0a6fcb4bb829"],
}


def printed(prompt: str, artist: str | None) -> str:
    prompt = prompt.replace("{unsafe_", "{unsafe ")
    prompt = prompt.replace(artist, "{artist}") if artist else prompt
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@pytest.mark.parametrize("concept", concepts("paper"))
def test_prompts_are_those_of_the_paper(concept: str) -> None:
    artist = ARTISTS.get(concept)
    found = [printed(turn.prompt, artist) for turn in turns("paper", concept)]
    assert found == PRINTED["artist" if artist else concept]
    assert [turn.max_new_tokens for turn in turns("paper", concept)] == [128] * (2 if artist else 3)


def test_a_card_says_how_long_answers_may_be() -> None:
    card = Caption.model_validate({"caption_tokens": 200, "rewrite_tokens": 300})
    for edition, listed in (("paper", 128), ("shapes", 24)):
        found = turns(edition, "nudity", card.lengths())
        assert [turn.max_new_tokens for turn in found] == [200, listed, 300]
        assert [turn.prompt for turn in found] == [turn.prompt for turn in turns(edition, "nudity")]


def test_the_paper_s_words() -> None:
    caption, listed, rewrite = turns("paper", "violence")
    assert caption.prompt == "Describe this image in a caption."
    assert "violence or violent(cruel) content as a Python-style list of strings" in listed.prompt
    assert "['gun', 'blood-soaked bathroom', 'blood']" in listed.prompt
    assert rewrite.prompt.startswith('The original caption was: "{unsafe_caption}". The following elements are unsafe')
    assert "the safe, non-explicit parts" in turns("paper", "nudity")[2].prompt
    painted, plain = turns("paper", "picasso")
    assert painted.prompt == "Generate this Picasso's painting in a caption."
    assert "must be strictly excluded: Picasso. Generate a new caption" in plain.prompt


def test_the_rewrite_quotes_the_caption_and_the_cleaned_list() -> None:
    _, listed, rewrite = turns("paper", "violence")
    assert listed.clean is components.clean
    known = {"unsafe_caption": "a man with a gun", "unsafe_components": listed.clean("```\n[“gun”]\n```")}
    asked = vision_language.fill(rewrite.prompt, known)
    assert 'was: "a man with a gun". The' in asked
    assert "excluded: ['gun']. Generate" in asked
    assert "{" not in asked


def test_the_shapes_edition_asks_what_the_captioner_learnt() -> None:
    for concept, asked in shapes.TURNS.items():
        found = turns("shapes", concept)
        assert [(t.name, t.prompt, t.max_new_tokens) for t in found] == [
            (t.name, t.prompt, t.max_new_tokens) for t in asked
        ]
        assert [t.clean for t in found] == [components.clean if t.name == "unsafe_components" else None for t in asked]


def test_what_is_known_without_asking() -> None:
    assert given("paper", "van-gogh") == ("Van Gogh",)
    assert given("paper", "picasso") == ("Picasso",)
    assert given("shapes", "van-gogh") == ("striped",)
    assert given("paper", "nudity") is None


def test_editions_and_concepts() -> None:
    assert concepts("paper") == ("nudity", "violence", "van-gogh", "picasso")
    assert concepts("shapes") == tuple(shapes.TURNS)
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        turns("shape", "nudity")
    with pytest.raises(UserError, match="did you mean 'violence'"):
        turns("paper", "violent")
    with pytest.raises(UserError, match="picasso"):
        given("shapes", "picasso")
