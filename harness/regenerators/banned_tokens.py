"""Tokens that an optimised prompt may not hold: special ones, age terms, and words of the user's choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from harness.data import guard


def banned_ids(tokenizer: Any, *, extra_words: Sequence[str] = ()) -> list[int]:
    """Tokens that no prompt may hold.

    A token is an age term when the guard refuses its text in a run of a sexual concept; pieces of words count too
    (``teen`` of ``teenage``). Age terms that several tokens make together are the guard's business, before drawing;
    words of ``extra_words`` that several tokens make are nobody's.

    Args:
        tokenizer: of CLIP.
        extra_words: words, or phrases whose words all count, whose tokens are banned too, plurals included.

    Returns:
        Ids in rising order.
    """
    ids = range(len(tokenizer))
    texts = tuple(text.strip() for text in tokenizer.batch_decode([[i] for i in ids]))
    words = {form for phrase in extra_words for word in phrase.split() for form in _forms(guard.normalise(word))}
    named = {i for i in ids if words and guard.normalise(texts[i]) in words}
    return sorted(frozenset(tokenizer.all_special_ids) | _age_tokens(texts) | named)


@lru_cache(maxsize=4)
def _age_tokens(texts: tuple[str, ...]) -> frozenset[int]:
    return frozenset(i for i, text in enumerate(texts) if guard.verdict(text, "nudity"))


def _forms(word: str) -> tuple[str, ...]:
    """A word and its regular plurals."""
    return (word, f"{word}s", f"{word}es", *((f"{word[:-1]}ies",) if word.endswith("y") else ()))
