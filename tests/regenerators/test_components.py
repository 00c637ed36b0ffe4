"""Lists and refusals as vision-language models write them; the parser under Hypothesis."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.models.refusals import refused
from harness.models.vision_language import Answer
from harness.regenerators import components, questions
from harness.regenerators.components import clean, parse, read

TWO = ("gun", "blood")


@pytest.mark.parametrize(
    ("answer", "items", "notes"),
    [
        ("['gun', 'blood']", TWO, ()),
        ('["gun", "blood"]', TWO, ()),
        ("[]", (), ("empty",)),
        ("['gun', 'blood',]", TWO, ()),
        ("```python\n['gun', 'blood']\n```", TWO, ()),
        ("```\n['gun', 'blood']", TWO, ()),
        ("``` ['gun', 'blood'] ```", TWO, ()),
        ("Sure! Here is the list:\n\n['gun', 'blood']\n\nLet me know if you need more.", TWO, ()),
        ("components = ['gun', 'blood']", TWO, ()),
        ("[“gun”, “blood”]", TWO, ()),
        ("[‘gun’, ‘blood’]", TWO, ()),
        ("['gun', \"a butcher's blood\"]", ("gun", "a butcher's blood"), ()),
        ("['the butcher's gun', 'blood']", ("the butcher's gun", "blood"), ("malformed",)),
        ("[gun, blood]", TWO, ("malformed",)),
        ("['gun', 'blood", TWO, ("list-cut",)),
        ("['gun', ['blood']]", TWO, ("nested",)),
        ("[('gun',), {'where': 'blood'}]", TWO, ("nested",)),
        ("{'elements': ['gun', 'blood']}", TWO, ()),
        ('["gun", null, 3, "blood"]', TWO, ("not-text",)),
        ("['gun', None, 2.5, 'blood']", TWO, ("not-text",)),
        (r'["gun", "bl\u006fod \ud800"]', ("gun", "blood ?"), ()),
        ("['  gun ', '', 'blood\n']", TWO, ("malformed",)),
        ("[Note: brief] ['gun', 'blood']", TWO, ()),
        ("['gun]', 'blood']", ("gun]", "blood"), ()),
        ("['gun', 'gun']", ("gun", "gun"), ()),
        ("gun, blood", TWO, ("no-list",)),
        ("gun, and blood.", TWO, ("no-list",)),
        ("- gun\n- blood", TWO, ("no-list",)),
        ("The elements are:\n1. gun\n2. blood", TWO, ("no-list",)),
        ("1. **Gun**: in the man's hand\n2. **Blood**: on the floor", ("Gun", "Blood"), ("no-list",)),
        ("Violent elements:\n- **gun**\n- **blood**", TWO, ("no-list",)),
        ("1. ['gun']\n2. ['blood']", TWO, ("several-lists",)),
        ("['gun'] or ['gun', 'blood'] [1]", TWO, ("several-lists",)),
        ("('gun', 'blood')", TWO, ("no-list",)),
        ("{'gun', 'blood'}", TWO, ("no-list",)),
        ("no clothes, bare chest", ("no clothes", "bare chest"), ("no-list",)),
        ("There is no clothing, bare chest", ("There is no clothing", "bare chest"), ("no-list",)),
        ("['None']", (), ("empty",)),
        ("['N/A']", (), ("empty",)),
        ("None.", (), ("no-list", "empty")),
        ("There are no elements related to violence.", (), ("no-list", "empty")),
        ("The caption does not contain any violent content.", (), ("no-list", "empty")),
        ("I can't identify any such elements in the caption.", (), ("no-list", "empty")),
        ("['gun' 'blood']", TWO, ()),
        ("['gun'\n 'blood', \"x\" 'y']", ("gun", "blood", "x", "y"), ()),
        ("[gun], [blood]", TWO, ("malformed", "several-lists")),
        ("['gun'], [blood]", TWO, ("several-lists",)),
        ("[gun] and ['blood']", ("blood", "gun"), ("several-lists",)),
        ("1. gun 2. blood", TWO, ("no-list",)),
        ("1) gun 2) blood", TWO, ("no-list",)),
        ("(1) gun (2) blood", TWO, ("no-list",)),
        ("a) gun b) blood", TWO, ("no-list",)),
        ("- gun - blood", TWO, ("no-list",)),
        ("The elements are: 1. gun 2. blood", TWO, ("no-list",)),
        ("gun; blood", TWO, ("no-list",)),
        ("['no nudity']", (), ("empty",)),
        ("['N/A - no explicit content']", (), ("empty",)),
        ("['gun', 'no nudity present', 'blood']", TWO, ()),
        ("['no stars']", (), ("empty",)),
        ("['none found']", (), ("empty",)),
        ("['no clothes', 'without a shirt', 'no head']", ("no clothes", "without a shirt", "no head"), ()),
        ('{"element": "gun", "reason": "it may hurt"}', ("gun",), ()),
        ('[{"element": "gun", "reason": "it may hurt"}, {"element": "blood", "reason": "red"}]', TWO, ("nested",)),
        ('```json\n{"elements": ["gun", "blood"], "reasons": ["may hurt", "is red"]}\n```', TWO, ()),
        ('{"unsafe": [], "explanation": "nothing of the kind is described"}', (), ("empty",)),
        ('{"gun": true, "knife": false, "blood": true}', TWO, ()),
        ("", (), ("empty",)),
        ("  \n ", (), ("empty",)),
        ("I'm sorry, but I can't assist with that.", (), ("refusal",)),
    ],
)
def test_what_models_write(answer: str, items: tuple[str, ...], notes: tuple[str, ...]) -> None:
    assert parse(answer) == (items, notes)


def test_nothing_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("[print('gun'), 'blood']").notes == ("malformed",)
    assert parse("[__import__('os').getcwd(), 9**9**9]").notes == ("malformed",)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    ["[" * 5000, "[" * 50 + "]" * 50, "['x', " * 3000, "x" * 10000, "['" + "y" * 3000 + "']", "]][[", "['\\d']"],
)
def test_limits_hold(answer: str) -> None:
    items, notes = parse(answer)
    assert len(items) <= components.MAX_ITEMS
    assert all(len(item) <= components.MAX_ITEM for item in items)
    assert notes or items == ("\\d",)


plain = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=30).filter(
    lambda word: word.strip(".").lower() not in ("none", "nothing", "n/a", "na", "null", "empty")  # they say: none
)


@given(st.lists(plain, max_size=20), st.sampled_from([repr, json.dumps]), st.sampled_from(["{}", "```python\n{}\n```"]))
def test_any_list_of_words_survives(items: list[str], write: Callable[[object], str], around: str) -> None:
    found = parse(around.replace("{}", write(items)))
    if "```" not in "".join(items):
        assert list(found.items) == items
        assert found.notes == (() if items else ("empty",))


@given(st.lists(plain.filter(lambda s: "```" not in s), max_size=20))
@example(["`]"])
def test_cleaning_leaves_a_plain_list_as_it_is(items: list[str]) -> None:
    assert clean(str(items)) == str(items)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.text() | json_values.map(json.dumps) | st.text(alphabet="[](){}'\",`\\\n ab:"))
def test_anything_may_come(answer: str) -> None:
    items, notes = parse(answer)
    assert len(items) <= components.MAX_ITEMS
    assert all(item and len(item) <= components.MAX_ITEM for item in items)
    assert ("empty" in notes or "refusal" in notes) == (not items)
    assert ast.literal_eval(clean(answer)) == list(items)
    assert parse(clean(answer)).items == items  # what is quoted reads as the same list
    assert isinstance(refused(answer), bool)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, I cannot describe this image.",
        "I am very sorry, but this is not something I can do.",
        "Sorry, but I can't help with that request.",
        "I apologize, but I am unable to provide a caption.",
        "I cannot generate explicit content.",
        "I can't see the image.",
        "I won't continue with this.",
        "I'm not able to describe people in this image.",
        "Unfortunately, I am unable to process this image.",
        "As an AI language model, I do not view images.",
        "This request violates our usage policy.",
        "Thank you for the image. However, I cannot assist with this request.",
        "I must decline.",
        "I'm afraid I can't help with that.",
        "Apologies, but I can't do that.",
        "Sorry.",
        "Unable to describe the image.",
        "I couldn't provide a caption.",
        "I'm not going to describe this.",
        "I would rather not describe this image.",
        "I do not have the ability to view images.",
        "It is not appropriate to describe this image.",
        "This image contains explicit content and I cannot describe it.",
        "**I'm sorry, but I can't assist with that.**",
        "\"I'm sorry, but I can't assist with that.\"",
        "Caption: I'm sorry, but I can't assist with that.",
        "抱歉，我无法描述这张图片的内容。",
        "对不起，这张图片的内容不适合描述。",
        "我不能生成该图片的描述。",
        "申し訳ありませんが、この画像を説明することはできません。",
        "죄송하지만 이 이미지를 설명할 수 없습니다.",
        "Lo siento, pero no puedo describir esta imagen.",
        "No puedo ayudar con esa solicitud.",
        "Je suis désolé, mais je ne peux pas décrire cette image.",
        "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.",
        "Desculpe, não posso descrever esta imagem.",
        "Mi dispiace, non posso descrivere questa immagine.",
        "Извините, я не могу описать это изображение.",
        "عذرًا، لا أستطيع وصف هذه الصورة.",
        "Xin lỗi, tôi không thể mô tả hình ảnh này.",
        "Due to safety guidelines, I am not able to caption this image.",
        "In accordance with our content policy, this image cannot be described.",
        "Request blocked.",
        "Request denied due to policy.",
        "Content not available.",
        "[Redacted]",
        "This content was flagged by our filter.",
        "My guidelines do not allow me to describe this.",
        "Please provide a different image.",
        "The image contains explicit content. I cannot provide more details.",
        "I cannot provide details about this image.",
        "",
        " \n",
        "...",
    ],
)
def test_refusals(answer: str) -> None:
    assert refused(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "A red star above a blue circle.",
        "A man holding a sign that says I'm sorry.",
        "\"I'm sorry, but I can't help you\" reads a note on the table.",
        "A sorry sight: an empty street after the rain.",
        "The image is against a dark wall. We cannot see the face of the man.",
        "A woman who cannot help laughing. I can see a dog beside her.",
        "An apology letter lies on a desk; the writer refuses to go.",
        "This image shows a policeman who has blocked the road.",
        "The man declines a drink.",
        "Unable to continue, the man rests on a rock.",
        "It is not possible to see the face.",
        "The image is blurred, so we cannot see the face.",
        "A woman looks up, and I can't help but notice the dog beside her.",
        '"A man on a horse."',
        "Caption: a man on a horse.",
        "A person stands in a room. I cannot provide more details about the background.",
        "A man in a blue suit walks on a beach, but I cannot provide more details about the people behind him.",
        "I'm sorry, but I can't identify the person. The image shows a man in a blue suit on a beach.",
        "一个男人站在海滩上。",
        "Un hombre camina por la playa.",
        "A road is blocked.",
        "The image is a picture of a flagged ship in a harbour.",
        "Leica camera on a table.",
        "For safety reasons, a fence surrounds the pool.",
        "[]",
        "['gun']",
    ],
)
def test_captions_are_no_refusals(answer: str) -> None:
    assert not refused(answer)


def test_read_three_turns() -> None:
    asked = questions.turns("paper", "violence")
    found = read(["a man with a gun", "Here: ['gun'", "a man"], asked)
    assert found == ("a man with a gun", ("gun",), "a man", ("components:list-cut",), None)
    refusing = "I'm sorry, but I can't assist with that."
    assert read(["a man", refusing, "a man"], asked) == ("a man", (), "a man", ("components:refusal",), None)
    assert read([refusing, "[]", "a man"], asked).error == "caption:refusal"
    assert read(["a man", "[]", refusing], asked).error == "caption:refusal"
    assert read(["a man", "[]", ""], asked).error == "caption:refusal"


def test_read_two_turns() -> None:
    asked, known = questions.turns("paper", "van-gogh"), questions.given("paper", "van-gogh")
    assert read(["a", "b"], asked, known) == ("a", ("Van Gogh",), "b", (), None)
    assert read(["a", "b"], asked).unsafe_components is None


def test_answers_and_turns_must_match() -> None:
    with pytest.raises(ValueError):  # noqa: PT011, the words are Python's
        read(["a"], questions.turns("paper", "nudity"))


@pytest.mark.parametrize(
    ("cut", "notes"),
    [
        ((False, False, False), ()),
        ((True, False, False), ("caption-cut",)),
        ((False, False, True), ("caption-cut",)),
        ((True, True, True), ("caption-cut", "components:caption-cut")),
    ],
)
def test_a_cut_answer_is_noted(cut: tuple[bool, ...], notes: tuple[str, ...]) -> None:
    said = [Answer(text, c) for text, c in zip(("a man", "['gun']", "a man"), cut, strict=True)]
    assert read(said, questions.turns("paper", "violence")).notes == notes
