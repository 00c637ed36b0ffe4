r"""The age-term guard: what no diffusion model of this project ever draws from.

No text that combines a minor with sexual content is generated from, wherever it comes from (benchmark,
caption, optimised tokens, training prompts). In runs of a sexual concept any age term suffices, since
adversarial prompts leave the sexual words out; in all others an age term counts beside a sexual one.
It cannot be switched off. Its words are data (``data/guard_words.yaml``), English only, matched as whole words in
every reading of the text: as it stands, with hidden characters and HTML entities resolved, letters set apart put
together, digits and signs read as the letters that they stand for, emoji as their names. A word glued to another
("nicechild") is not found.

    >>> verdict("a child playing in a park", "nudity")
    'age-term'
    >>> verdict("a child playing in a park", "violence") is None
    True
    >>> verdict("a ch1ld, c-h-i-l-d", "nudity")
    'age-term'
    >>> verdict("a \U0001f476", "nudity")
    'age-term'
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import RowError

WORDS = Path(__file__).with_name("guard_words.yaml")
AGE_TERM = "age-term"
ADULT = 18  # years

# A word ends where its letters end, not at a digit or underscore: CLIP's tokenizer cuts there too.
_START, _END = r"(?<![^\W\d_])", r"(?![^\W\d_])"
_GAP = r"[\W_]{0,3}"  # between the words of a phrase
_OF_AGE = re.compile(r"old|young|age|y\W?o|under|below|less|than|yet|<|birthday|grade")  # one is in whatever is an age

# Spellings that hide a word: a mark or control character inside it, its letters apart, signs for letters.
_INSIDE = re.compile(r"(?<=[^\W\d_])[-\u2010-\u2015_.*'\u2019\u00b7\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd](?=[^\W\d_])")
_SEPARATOR = re.compile(r"[\W_]")
_APART = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,2}[^\W_](?![^\W_])){2,}")
_SIGN = re.compile(r"[0-9@$!|]")
_SPELT = re.compile(r"[a-z0-9@$!|]+")
_SIGNS = tuple(str.maketrans("0134578@$!|9", f"o{one}eastbas{one}{one}g") for one in "il")  # 1 is i or l


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return data


VERSION = f"{_data()['version']}-{hashlib.sha256(WORDS.read_bytes()).hexdigest()[:8]}"  # of the word list


def guard(text: str, concept: str) -> None:
    """Refuse a text that must not be drawn; called before every call of a diffusion model.

    Raises:
        RowError: with code ``guard:<reason>`` when ``verdict`` has a reason.
    """
    reason = verdict(text, concept)
    if reason is not None:
        raise RowError(f"guard:{reason}")


def verdict(text: str, concept: str) -> str | None:
    """The reason why ``text`` must not be drawn in a run of ``concept``; None when it may be.

    Args:
        text: any prompt, caption or decoded token sequence.
        concept: the run's concept, such as ``nudity`` or ``violence``.
    """
    plain, respelt = _readings(text)
    every = (*plain, *respelt)
    if not (any(map(_age().search, every)) or any(map(_minor_age, plain))):
        return None
    if sexual(concept) or any(map(_sexual().search, every)):
        return AGE_TERM
    return None


def sexual(concept: str) -> bool:
    """Whether runs of ``concept`` are sexual whatever the prompt says: it is listed, or named by a sexual word."""
    plain = normalise(concept)
    return plain.strip() in _data()["sexual_concepts"] or _sexual().search(plain) is not None


def normalise(text: str, hidden: str = "") -> str:
    """``text`` with one spelling for what looks alike: NFKC, case folded, marks dropped, lookalikes as Latin letters.

    Args:
        text: any.
        hidden: replacement for invisible characters, such as a zero-width space.
    """
    if text.isascii():
        return text.casefold()
    folded = unicodedata.normalize("NFKC", text.translate(_lookalikes())).casefold()
    apart = unicodedata.normalize("NFKD", folded).translate(_lookalikes())  # accents become characters of their own
    instead = {"Cf": hidden, "Mn": "", "Me": ""}
    return "".join(instead.get(unicodedata.category(c), c) for c in apart)


def _readings(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What ``text`` may say: as it stands (normalised), and respelt (for single words only, not for ages).

    A tokenizer may drop a character that is not seen, or cut there, and may resolve HTML entities: each is a reading.
    """
    sources = dict.fromkeys((text, html.unescape(html.unescape(text)))) if "&" in text else (text,)
    plain = dict.fromkeys(
        normalise(source, hidden) for source in sources for hidden in ("", " ")[: 1 if source.isascii() else 2]
    )
    joined = dict.fromkeys(_INSIDE.sub("", _APART.sub(_together, one)) for one in plain)
    respelt = (_letters(one, table) for one in joined for table in _SIGNS)
    named = (normalise(_named(source)) for source in sources if not source.isascii())
    return tuple(plain), tuple(one for one in dict.fromkeys((*joined, *respelt, *named)) if one not in plain)


def _named(text: str) -> str:
    """``text`` with each emoji or other sign as its Unicode name: U+1F476 is called BABY, U+1F467 GIRL."""
    return "".join(f" {unicodedata.name(c, c)} " if unicodedata.category(c) == "So" else c for c in text)


def _together(apart: re.Match[str]) -> str:
    """Letters set apart as a word, and again without the first, which may be an article: "a c h i l d"."""
    word = _SEPARATOR.sub("", apart[0])
    return f"{word} {word[1:]}"


def _letters(text: str, signs: dict[int, int]) -> str:
    """``text`` with digits and signs read as letters, but for words of digits and signs alone."""
    if not _SIGN.search(text):
        return text
    return _SPELT.sub(lambda m: m[0].translate(signs) if any(map(str.isalpha, m[0])) else m[0], text)


@lru_cache(maxsize=1)
def _lookalikes() -> dict[int, str]:
    """Characters of other scripts that look like a Latin letter, and that letter."""
    table = {ord(c): letter for letter, others in _data()["lookalikes"].items() for c in others}
    for first in (0x1F130, 0x1F150, 0x1F170, 0x1F1E6):  # squared, circled and squared white letters, flags' letters
        table |= {first + i: chr(ord("a") + i) for i in range(26)}
    return table | dict.fromkeys((0x115F, 0x1160, 0x3164, 0xFFA0), "\u200b")  # letters that are not seen


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
    data = _data()
    tens, ordinals = "|".join(data["tens"]), "|".join(data["ordinals"])
    word = rf"{_START}(?:(?:(?:{tens}){_GAP})?(?:{'|'.join(data['numbers'])})|eighteen|nineteen|{tens})"
    figure = r"(?<!\d)\d{1,3}(?:,\d{3})+|(?<!\d)\d+(?:\.\d+)?"
    number = rf"(?P<n>{figure}|{word})"
    # "12 to 20 years old" and "12-20 years old"; but of "two 30 year old people" the two is no age
    to = rf"(?:{_GAP}(?:to|and|or|through){_GAP}|\s?[-\u2010-\u2015/&]\s?)(?:{figure}|{word})"
    old = rf"{_GAP}(?:years?|yrs?|y){_GAP}(?:olds?|young|of{_GAP}age){_END}"
    limit = rf"(?P<limit>\d{{1,2}}|eighteen|{word})(?:{_GAP}s)?{_END}(?![\d%])"
    below = rf"(?:{_START}(?:under|below|less{_GAP}than|(?:no|not){_GAP}older{_GAP}than|not{_GAP}yet){_GAP}|<{_GAP})"
    said = rf"(?:(?:is|of|about|around|only|just|between|from){_GAP})*"
    return tuple(
        re.compile(pattern)
        for pattern in (
            rf"{number}{old}",  # 12 years old
            rf"{number}{to}{old}",  # 12 to 20 years old
            rf"{number}{_GAP}y\W?o(?:{_GAP}s)?{_END}",  # 12yo, 12 y/o, 12 y.o., 12yos
            rf"{number}{_GAP}(?:days?|weeks?|wks?|months?|mths?|mos?){_GAP}olds?{_END}",
            rf"{_START}age[ds]?{_GAP}{said}(?P<n>{figure}|{word}{_END})(?!\d|st|nd|rd|th)",  # aged 12, aged about 12
            rf"{below}(?:the{_GAP})?age{_GAP}(?:of{_GAP})?{limit}",  # below the age of 12
            rf"{below}(?P<limit>1\d|eighteen)(?:{_GAP}s)?{_END}(?![\d%])",  # under 18s, and not "under 3 trees"
            rf"(?:(?P<n>(?<!\d)\d+)(?:st|nd|rd|th)|{_START}(?:{ordinals})){_GAP}(?:birthday|grade)s?{_END}",
        )
    )


def _minor_age(plain: str) -> bool:
    """Whether ``plain`` says an age below eighteen in figures or number words."""
    if not _OF_AGE.search(plain):
        return False
    for pattern in _ages():
        for match in pattern.finditer(plain):
            limit = match.groupdict().get("limit")
            if limit is not None:
                if _number(limit) <= ADULT:
                    return True
            elif match["n"] is None or _number(match["n"]) < ADULT * _units_per_year(match.group()):
                return True
    return False


def _units_per_year(phrase: str) -> int:
    """How many of the phrase's units make a year."""
    units = (("birthday", 1), ("mo", 12), ("mth", 12), ("week", 52), ("wk", 52), ("day", 365))
    return next((count for unit, count in units if unit in phrase), 1)


def _number(text: str) -> float:
    """A number in figures or words; any word above seventeen counts as eighteen."""
    data = _data()
    if text in data["numbers"]:
        return float(data["numbers"].index(text))
    if text.startswith(("eighteen", "nineteen", *data["tens"])):
        return ADULT
    return float(text.replace(",", ""))
