"""The guard: planted rows are stopped, ordinary ones pass, and every prompt of the shapes world passes."""

from __future__ import annotations

import random

import pytest
import yaml
from age_words import age_words
from hypothesis import given
from hypothesis import strategies as st

from harness.data import guard
from harness.errors import RowError
from harness.shapes import world

STOPPED = [
    "a child playing",
    "Children at the beach",
    "CHILD",
    "the child's kite",
    "two babies asleep",
    "a teen, in her teens",
    "teenagers on a bus",
    "teen-agers on a bus",
    "a girl with a balloon",
    "boys playing football",
    "a schoolgirl reading",
    "a school girl reading",
    "school-girls reading",
    "a young emperor",
    "the kid2 on a swing",
    "kid_on_a_swing",
    "ＣＨＩＬＤ on a swing",
    "a ch\u200bild on a swing",
    "a ch\u00adild on a swing",
    "a chi\u0301ld on a swing",
    "12 year old",
    "a 12-year-old",
    "12 years old",
    "12yo",
    "12 y/o",
    "12 y.o.",
    "12 yrs old",
    "12 years of age",
    "１２ year old",
    "twelve year old",
    "seventeen-year-old",
    "17.5 years old",
    "6 months old",
    "30 month old",
    "aged 16",
    "aged sixteen",
    "age: 9",
    "ages 5 to 9",
    "at the age of 3",
    "between 30 and 15 years old",
    "people under 18",
    "below the age of 12",
    "under the age of eighteen",
    "<18",
    "12 to 20 years old",
    "12-13 year olds",
    "between 12 and 20 years old",
    "under-18s",
    "12yos",
    "aged between 10 and 12",
    "aged about twelve",
    "eighteen months old",
    "twenty months old",
    "6 mo old",
    "8 wks old",
    "no older than 12",
    "13th birthday",
    "a fifth grade class",
    "a mother and her son",
    "a youthful face",
    "a babygirl",
    "agirl in a park",  # tokens of CLIP's own
    "kidz",
    "juven",
    "a sophomore",
]

HIDDEN = [
    "ch1ld",
    "t33n",
    "k1d",
    "schoolg!rl",
    "b0ys",
    "c h i l d",
    "a c h i l d",
    "a d o l e s c e n t",
    "c-h-i-l-d",
    "c.h.i.l.d",
    "c_h_1_l_d",
    "chi-ld",
    "ch\x00ild",
    "ch\x07ild",
    "a\x0bchild",
    "ch\ufffdild",
    "ch&#105;ld",
    "ch&shy;ild",
    "&amp;#99;hild",
    "ch\u0131ld",  # dotless i
    "\u0441h\u0456ld",  # Cyrillic es and i
    "\u0421HILD",  # Cyrillic capital es
    "b\u03bfy",  # Greek omicron
    "\u0299\u1d0f\u028f",  # small capitals
    "\U0001d520\U0001d525\U0001d526\U0001d529\U0001d521",  # mathematical letters
    "\u24d2\u24d7\u24d8\u24db\u24d3",  # circled letters
    "\U0001f172\U0001f177\U0001f178\U0001f17b\U0001f173",  # letters in black squares
    "\U0001f1e8\U0001f1ed\U0001f1ee\U0001f1f1\U0001f1e9",  # flags' letters
    "one\u200bchild",  # a tokenizer may cut at what is not seen
    "one\u3164child",
    "a \U0001f476",  # baby
    "one\U0001f467\U0001f3fd",  # girl, with a skin tone
    "\U0001f468\u200d\U0001f469\u200d\U0001f466",  # man, woman, boy: a family
    "\U0001f9d2\ufe0f \U0001f47c",  # child, baby angel
    "a &#128118;",
    "\u2f26",  # the radical for child
]

PASSED = [
    "",
    "a woman reading in a park",
    "a young woman reading",
    "a young man at sea",
    "two young adults",
    "an 18 year old",
    "a 21-year-old",
    "25.5 years old",
    "a 1,000 year old temple",
    "an oak, 117 years old",
    "a twenty-seven year old painter",
    "a thirty one year old painter",
    "aged seventy",
    "aged 71",
    "a wine 240 months old",
    "12 years a sailor",
    "page 12 of a book",
    "a stage 12 metres wide",
    "middle age 15th century town",
    "under 3 trees",
    "under 18% of the roof",
    "under 180 stars",
    "a girlfriend and a boyfriend",
    "a cowboy, a minority, kidney beans, a toyshop",
    "a childlikeness",
    "a kind man",
    "two 30 year old women",  # two of them
    "30-40 year old women",
    "under 3s",
    "the 18th birthday",
    "a fox on and under a bench",
    "4k, 8k, 3d render, $500, 90s, c-3po, h2o, x y z",
    "a season of sonnets, sonatas",
    "\u043c\u043e\u0440\u0435",  # Cyrillic: the sea
    "a \U0001f469 and a \U0001f468 in the \u2600, \U0001f525\U0001f51e",  # woman, man; for adults only
]


@pytest.mark.parametrize("text", STOPPED)
def test_any_age_term_stops_a_row_of_a_sexual_concept(text: str) -> None:
    assert guard.verdict(text, "nudity") == "age-term"
    with pytest.raises(RowError) as caught:
        guard.guard(text, "nudity")
    assert caught.value.code == "guard:age-term"


@pytest.mark.parametrize("text", HIDDEN)
def test_a_spelling_that_hides_an_age_term_is_seen_through(text: str) -> None:
    assert guard.verdict(f"an image of {text} at sea", "nudity") == "age-term"
    assert guard.verdict(f"{text}, s3xy", "violence") == "age-term"
    assert guard.verdict(text, "violence") is None


@pytest.mark.parametrize(
    "concept", ["nudity", "Nudity", "nude", "sexual-content", "explicit", "porn", "NSFW", "nud\u0456ty"]
)
def test_a_concept_is_sexual_by_whatever_name(concept: str) -> None:
    assert guard.sexual(concept)
    assert guard.verdict("a child in a park", concept) == "age-term"


@pytest.mark.parametrize("concept", ["violence", "van-gogh", "church", "benign", "picasso"])
def test_other_concepts_are_not_sexual(concept: str) -> None:
    assert not guard.sexual(concept)


@pytest.mark.parametrize("concept", ["violence", "van-gogh", "benign"])
@pytest.mark.parametrize("text", STOPPED)
def test_other_concepts_need_a_sexual_term_beside(text: str, concept: str) -> None:
    assert guard.verdict(text, concept) is None
    assert guard.verdict(f"{text}, nudity", concept) == "age-term"
    assert guard.verdict(f"Sexual. {text}", concept) == "age-term"


@pytest.mark.parametrize("text", PASSED)
def test_ordinary_words_pass(text: str) -> None:
    assert guard.verdict(text, "nudity") is None
    assert guard.verdict(f"nudity, {text}", "violence") is None


@given(st.sampled_from(sorted(age_words())), st.text(" .,-!?/()0123456789_", max_size=5), st.randoms())
def test_every_age_word_is_found_in_any_case_between_anything_but_letters(
    word: str, edge: str, rng: random.Random
) -> None:
    typed = "".join(rng.choice((c.lower(), c.upper())) for c in word)
    assert guard.verdict(f"an image {edge}{typed}{edge} by the sea", "nudity") == "age-term"


@given(st.integers(0, 400), st.sampled_from(["{} year old", "{}-years-old", "{}yo", "aged {}", "{} yrs old"]))
def test_a_numeric_age_stops_a_row_below_eighteen_only(years: int, phrase: str) -> None:
    assert guard.verdict(f"a person, {phrase.format(years)}, reading", "nudity") == ("age-term" if years < 18 else None)


@given(st.text(max_size=80), st.sampled_from(["nudity", "violence"]))
def test_any_text_gets_a_verdict(text: str, concept: str) -> None:
    assert guard.verdict(text, concept) in (None, "age-term")


@pytest.mark.parametrize(
    "piece", ["a", "1", "a1", "a ", "a-", "1-", "12 to ", "&", "aged ", "young ", "&#", "one hundred "]
)
def test_the_time_for_a_verdict_grows_with_the_texts_length_only(piece: str) -> None:
    """A text of 50,000 characters whose every start might be a match; a quadratic pattern takes minutes."""
    assert guard.verdict(piece * (50_000 // len(piece)), "nudity") in (None, "age-term")


def test_every_prompt_of_the_shapes_world_passes() -> None:
    words = [w for ws in world.SHAPE_WORDS.values() for w in ws]
    words += [
        *world.COLOURS,
        *world.BACKGROUNDS,
        *world.TEXTURES,
        *world.RELATIONS,
        *world.FILLERS,
        "a",
        "on",
        "background",
    ]
    assert guard.verdict(" ".join(words), "nudity") is None
    rng = random.Random(0)
    for _ in range(1500):
        scene = world.sample_scene(rng)
        for text in (world.sentence(scene), world.caption(scene, rng)):
            assert guard.verdict(text, "nudity") is None, text


def test_the_word_list_is_clean_and_its_version_names_it() -> None:
    data = yaml.safe_load(guard.WORDS.read_text())
    for name in ("age", "sexual", "sexual_concepts"):
        terms = data[name]
        assert terms == sorted(set(terms)), name
        assert all(term == guard.normalise(term).strip() for term in terms)
    assert guard.VERSION.startswith(f"{data['version']}-")
    assert set(data["adult_after"]) <= set(data["age"])


def test_words_to_ban_are_single_and_stop_a_row_alone() -> None:
    assert {"child", "children", "babies", "teens", "schoolgirl", "girl"} <= age_words()
    for word in age_words():
        assert word.isalpha()
        assert word.islower()
