"""The age-term guard: what no diffusion model of this project ever draws from.

No text that combines a minor with sexual content is generated from, wherever it comes from (benchmark,
caption, optimised tokens, training prompts). In runs of a sexual concept any age term suffices, since
adversarial prompts leave the sexual words out; in all others an age term counts beside a sexual one.
It cannot be switched off. Its words are data (``data/guard_words.yaml``), English only.

    >>> verdict("a child playing in a park", "nudity")
    'age-term'
    >>> verdict("a child playing in a park", "violence") is None
    True
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import RowError

WORDS = Path(__file__).with_name("data") / "guard_words.yaml"
AGE_TERM = "age-term"
ADULT = 18  # years

# A word ends where its letters end, not at a digit or underscore: CLIP's tokenizer cuts there too.
_START, _END = r"(?<![^\W\d_])", r"(?![^\W\d_])"
_GAP = r"[\W_]{0,3}"  # between the words of a phrase


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return data


VERSION = f"{_data()['version']}-{hashlib.sha256(WORDS.read_bytes()).hexdigest()[:8]}"  # of the word list


def guard(text: str, concept: str) -> None:
    """Let ``text`` pass to a diffusion model, or not.

    Raises:
        RowError: with code ``guard:<reason>`` when ``verdict`` has a reason.
    """
    reason = verdict(text, concept)
    if reason is not None:
        raise RowError(f"guard:{reason}")


def verdict(text: str, concept: str) -> str | None:
    """Why ``text`` must not be drawn in a run of ``concept``; None when it may.

    Args:
        text: any prompt, caption or decoded token sequence.
        concept: the run's concept, such as ``nudity`` or ``violence``.
    """
    plain = normalise(text)
    if not (_age().search(plain) or _minor_age(plain)):
        return None
    if concept in _data()["sexual_concepts"] or _sexual().search(plain):
        return AGE_TERM
    return None


def age_words() -> frozenset[str]:
    """Every single word that alone is an age term, lower case, plurals included: banned from optimised prompts."""
    return frozenset(form for term in _data()["age"] for form in _plurals(term.replace(" ", "")))


def normalise(text: str) -> str:
    """``text`` with one spelling for what looks alike: NFKC, case folded, marks and invisible characters dropped."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    apart = unicodedata.normalize("NFKD", folded)  # accents become characters of their own
    return "".join(c for c in apart if unicodedata.category(c) not in ("Cf", "Mn", "Me"))


@lru_cache(maxsize=1)
def _age() -> re.Pattern[str]:
    data = _data()
    spared = "|".join(data["adult_nouns"])
    plain = _any_of(t for t in data["age"] if t not in data["adult_after"])
    spared_terms = _any_of(data["adult_after"])
    return re.compile(f"{plain}|{spared_terms}(?!{_GAP}(?:{spared}){_END})")


@lru_cache(maxsize=1)
def _sexual() -> re.Pattern[str]:
    return re.compile(_any_of(_data()["sexual"]))


def _any_of(terms: Iterable[str]) -> str:
    """A pattern for any of ``terms`` or their plurals as whole words."""
    forms = sorted({form for term in terms for form in _plurals(term)}, key=lambda f: (-len(f), f))
    return f"{_START}(?:{'|'.join(_GAP.join(map(re.escape, form.split())) for form in forms)}){_END}"


def _plurals(term: str) -> tuple[str, str]:
    """The term and its regular plural."""
    if re.search(r"[^aeiou]y$", term):
        return term, f"{term[:-1]}ies"
    return term, f"{term}es" if re.search(r"(?:s|x|ch|sh)$", term) else f"{term}s"


@lru_cache(maxsize=1)
def _ages() -> tuple[re.Pattern[str], ...]:
    """Patterns of an age in figures or words (group ``n``), and of an upper limit of age (group ``limit``)."""
    word = rf"{_START}(?:(?:{'|'.join(_data()['tens'])}){_GAP})?(?:{'|'.join(_data()['numbers'])})"
    figure = r"(?<!\d)\d{1,3}(?:,\d{3})+|(?<!\d)\d+(?:\.\d+)?"
    number = rf"(?P<n>{figure}|{word})"
    limit = rf"(?P<limit>\d{{1,2}}|eighteen|{word}){_END}(?![\d%])"
    below = rf"(?:{_START}(?:under|below|less{_GAP}than){_GAP}|<{_GAP})"
    return tuple(
        re.compile(pattern)
        for pattern in (
            rf"{number}{_GAP}(?:years?|yrs?|y){_GAP}(?:olds?|young|of{_GAP}age){_END}",  # 12 years old
            rf"{number}{_GAP}y\W?o{_END}",  # 12yo, 12 y/o, 12 y.o.
            rf"{number}{_GAP}(?:days?|weeks?|months?){_GAP}olds?{_END}",
            rf"{_START}age[ds]?{_GAP}(?:(?:is|of){_GAP})?(?P<n>{figure}|{word}{_END})(?!\d|st|nd|rd|th)",  # aged 12
            rf"{below}(?:the{_GAP})?age{_GAP}(?:of{_GAP})?{limit}",  # below the age of 12
            rf"{below}(?P<limit>1\d|eighteen){_END}(?![\d%])",  # under 18, and not "under 3 trees"
        )
    )


def _minor_age(plain: str) -> bool:
    """Whether ``plain`` says an age below eighteen in figures or number words."""
    for pattern in _ages():
        for match in pattern.finditer(plain):
            limit = match.groupdict().get("limit")
            if limit is not None:
                if _number(limit) <= ADULT:
                    return True
            elif _number(match["n"]) < ADULT * _units_per_year(match.group()):
                return True
    return False


def _units_per_year(phrase: str) -> int:
    """How many of the phrase's units make a year."""
    return next((count for unit, count in (("month", 12), ("week", 52), ("day", 365)) if unit in phrase), 1)


def _number(text: str) -> float:
    """A number in figures or words; any with a word for tens is an adult's age."""
    data = _data()
    if text in data["numbers"]:
        return float(data["numbers"].index(text))
    if text == "eighteen" or text.startswith(tuple(data["tens"])):
        return ADULT
    return float(text.replace(",", ""))
