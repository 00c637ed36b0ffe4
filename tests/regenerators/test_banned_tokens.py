"""What optimised prompts may not hold."""

from __future__ import annotations

import pytest
from age_words import age_words
from transformers import CLIPTokenizer

from harness.data import guard
from harness.models import clip
from harness.regenerators.banned_tokens import banned_ids

SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def banned(words: list[str], *extra: str) -> set[str]:
    """Of ``words``, as CLIP's vocabulary writes them, those that are banned, and special tokens."""
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate([*words, *SPECIAL])}, merges=[])
    return {tokenizer.convert_ids_to_tokens(i) for i in banned_ids(tokenizer, extra_words=extra)}


def test_age_terms_and_special_tokens() -> None:
    age = ["teen</w>", "teen", "girl</w>", "16yo</w>", "Ġchild</w>"]
    assert banned([*age, "star</w>", "adult</w>", "16</w>", "ÿ"]) == {*age, *SPECIAL}
    for word in age_words():
        assert guard.verdict(word, "nudity")  # so that a token that is one is refused


@pytest.mark.parametrize("sign", "👶👧👦🧒👼🍼")
def test_age_terms_that_are_signs(sign: str) -> None:
    """CLIP's vocabulary holds some of them (26187, 33189: baby; 48938: girl), as bytes written in letters."""
    letters = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    rest = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    baby, star = ("".join(letters[byte] for byte in s.encode()) for s in (sign, "⭐"))
    assert banned([baby, f"{baby}</w>", star, f"{star}</w>"]) == {baby, f"{baby}</w>", *SPECIAL}


def test_words_of_the_user_s_choice_and_their_plurals() -> None:
    words = ["star</w>", "stars</w>", "star", "berry</w>", "berries</w>", "start</w>", "a</w>"]
    assert banned(words, "Star", "any berry") == {"star</w>", "star", "stars</w>", "berry</w>", "berries</w>", *SPECIAL}


def test_the_small_world_s_vocabulary_has_no_age_terms() -> None:
    assert banned_ids(clip.load({"source": "package:harness/shapes/weights/clip"}).tokenizer) == [659, 660]
