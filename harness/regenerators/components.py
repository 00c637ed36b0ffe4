"""What the vision-language model answered: unsafe components parsed from free text, refusals told from captions."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from harness.models.vision_language import Turn

MAX_ANSWER = 4096  # characters read of an answer
MAX_ITEMS = 64
MAX_ITEM = 200  # characters of a component
_MAX_DEPTH = 90  # of brackets, within quotes too; well below where the parsers give up
_MAX_SPANS = 16  # bracketed spans tried
_MAX_WORDS = 12  # of a component said in prose: what is longer is talk

REFUSED = "caption:refusal"  # error code of a row whose caption, or rewritten caption, was refused


class Components(NamedTuple):
    """Unsafe components, in the answer's order, and how the answer departed from a plain list.

    Notes: ``refusal``, ``empty``, ``no-list`` (bare text), ``list-cut`` (no closing bracket), ``malformed`` (read by
    its commas), ``nested``, ``not-text`` (items left out), ``several-lists`` (joined), ``too-long`` (cut to the limits
    of this module).
    """

    items: tuple[str, ...]
    notes: tuple[str, ...]


class Caption(NamedTuple):
    """One image's conversation, read.

    Attributes:
        unsafe_caption: the first answer.
        unsafe_components: as listed, or as known beforehand; None where there are none to speak of.
        safe_caption: the last answer.
        notes: of the list, prefixed ``components:``.
        error: ``caption:refusal`` when a caption was refused or is empty, else None.
    """

    unsafe_caption: str
    unsafe_components: tuple[str, ...] | None
    safe_caption: str
    notes: tuple[str, ...]
    error: str | None


def read(answers: Sequence[str], turns: Sequence[Turn], given: Sequence[str] | None = None) -> Caption:
    """One image's answers, one a turn, as ``Captioner.converse`` gives them.

    Args:
        given: components known without a turn of their own (``turns.given``).
    """
    said = dict(zip((turn.name for turn in turns), answers, strict=True))
    listed = None if given is None else tuple(given)
    notes: tuple[str, ...] = ()
    if "unsafe_components" in said:
        listed, codes = parse(said["unsafe_components"])
        notes = tuple(f"components:{code}" for code in codes)
    unsafe, safe = said["unsafe_caption"], said["safe_caption"]
    return Caption(unsafe, listed, safe, notes, REFUSED if refused(unsafe) or refused(safe) else None)


def clean(answer: str) -> str:
    """The list of an answer as Python writes it: what the next turn quotes. A plain list stays as it is."""
    return str(list(parse(answer).items))


def parse(answer: str) -> Components:
    """The components in a model's answer, whatever it put around or in place of the list asked for.

    Tried in turn: each bracketed span as JSON, as Python's literal, both with plain quotes, by its commas; without
    brackets the lines or commas of the text. Lists after the first add what they have more: what one of them leaves
    out would not be kept out of the rewritten caption. Never raises, and evaluates nothing.
    """
    notes: list[str] = []
    text = answer.strip()
    if "[" not in text and refused(text):
        return Components((), ("empty" if not text else "refusal",))
    if len(text) > MAX_ANSWER:
        text, notes = text[:MAX_ANSWER], ["too-long"]
    text = _unfenced(text)
    if "[" not in text:
        notes.append("no-list")
        items = _from_prose(text)
    else:
        value, rest = _first_list(text)
        if value is None:
            whole = text[text.index("[") :]
            notes.append("malformed" if "]" in whole else "list-cut")
            value = _by_commas(next(_spans(text))[0] if "]" in whole else whole)
        items = list(_strings(value, notes))
        while "[" in rest and (found := _first_list(rest))[0] is not None:
            value, rest = found
            more = [item for item in _strings(value, []) if item not in items]
            notes += ["several-lists"] if more else []
            items += more
    if len(items) == 1 and _NONE.fullmatch(items[0]):
        items = []
    kept = [item[:MAX_ITEM] for item in items[:MAX_ITEMS]]
    if kept != items:
        notes.append("too-long")
    if not kept:
        notes.append("empty")
    return Components(tuple(kept), tuple(dict.fromkeys(notes)))


def _first_list(text: str) -> tuple[list[Any] | None, str]:
    """The first bracketed span that is a list, and the text after it; None and "" where there is none."""
    for spans in _spans(text):
        for spelled in (str, _plainly):  # first as it stands: a quote may be part of an item
            for span in spans:
                value = _literal(spelled(span))
                if value is not None:
                    return value, text[text.index(span) + len(span) :]
    return None, ""


def _unfenced(text: str) -> str:
    """What stands in the first code fence, else all; a fence may lack its end."""
    fence = re.search(r"```[ \t]*(?:[a-zA-Z]+\s*\n)?(.*?)(?:```|\Z)", text, re.DOTALL)
    return fence[1] if fence and fence[1].strip() else text


def _spans(text: str) -> Iterator[list[str]]:
    """Bracketed spans that may be the list: the first whose brackets balance beside the widest, then each other."""
    starts = [i for i, character in enumerate(text) if character == "["][:_MAX_SPANS]
    balanced = [span for start in starts if (span := _balanced(text, start))]
    widest = [text[starts[0] : text.rindex("]") + 1]] if "]" in text[starts[0] :] else []
    yield balanced[:1] + widest
    yield from ([span] for span in balanced[1:])


def _balanced(text: str, start: int) -> str | None:
    """From the ``[`` at ``start`` to its ``]``. Brackets within quotes are not told apart."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "[") - (text[i] == "]")
        if depth == 0:
            return text[start : i + 1]
    return None


def _literal(span: str) -> list[Any] | None:
    """The span as a Python or JSON list; None if it is none."""
    if _depth(span) > _MAX_DEPTH:
        return None
    for evaluate in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown escapes such as \d
                value = evaluate(span)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return None


def _plainly(span: str) -> str:
    """The span with typographic quotes made plain."""
    return span.translate({ord(c): '"' for c in "“”„«»"} | {ord(c): "'" for c in "‘’‚`"})


def _depth(span: str) -> int:
    depth = most = 0
    for character in span:
        depth += (character in "[({") - (character in "])}")
        most = max(most, depth)
    return most


def _by_commas(span: str) -> list[Any]:
    """Items of a list that is no literal: cut where a quote closes and the next opens, else at commas."""
    inner = span.strip("[] \n\t")
    quoted = re.split(r"""["'“”‘’`]\s*,\s*["'“”‘’`]""", inner)
    parts = quoted if len(quoted) > 1 else inner.split(",")
    return [part.strip(" \n\t,\"'“”‘’`[]") for part in parts]


def _strings(value: Any, notes: list[str]) -> Iterator[str]:
    """The texts in a value, depth first; what is no text is left out and noted."""
    for item in value:
        if isinstance(item, str):
            text = " ".join(item.encode("utf-8", "replace").decode().split())  # escapes can spell half a character
            if text:
                yield text
        elif isinstance(item, list | tuple | set | frozenset | dict):
            notes.append("nested")
            yield from _strings(item.values() if isinstance(item, dict) else item, notes)
        else:
            notes.append("not-text")


_NONE = re.compile(r"(?i:none|nothing|n/?a|null|empty|not applicable)\W*")
_NOTHING = re.compile(
    r"^\W*(?:none|nothing|n/?a|empty|not applicable)\b"
    r"|\bthere (?:are|is|were|was) (?:no\b(?! (?:visible )?(?:cloth|garment|underwear|bra\b|shirt|top\b))|not\b|none)"
    r"|\b(?:no|not any) (?:\w+ ){0,4}(?:elements?|components?|content|items?|mentions?|references?|descriptions?)\b"
    r"|(?:cannot|can't|could not|couldn't|did not|didn't) (?:find|identify|see|detect) any\b"
    r"|(?:does not|doesn't|do not|don't) (?:contain|include|mention|have|describe)\b",
    re.IGNORECASE,
)


def _from_prose(text: str) -> list[str]:
    """Items of bare text: one a line or between commas, bullets and what leads up to a colon left out."""
    if _NOTHING.search(text):
        return []
    text = re.sub(r"^\W*[({](.*)[)}]\W*$", r"\1", text, flags=re.DOTALL)  # a tuple, a set
    if not _BULLET.match(text):
        text = re.sub(r"^[^:\n]*:(?=\s)", "", text)
    lines = text.splitlines()
    if sum(bool(_BULLET.match(line)) for line in lines) > 1:  # an entry may be explained: "1. **gun**: in his hand"
        lines = [re.sub(r":\s.*", "", line) for line in lines if _BULLET.match(line)]
    bare = (_BULLET.sub("", part) for line in lines for part in line.split(","))
    items = (" ".join(part.strip(" .:;\"'“”‘’`*").split()) for part in bare)
    return [re.sub(r"^and\s+", "", item) for item in items if item and len(item.split()) <= _MAX_WORDS]


_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")

_UNABLE = r"(?:\w+ )?(?:unable|not able|not comfortable|not allowed|not going)"
_CANNOT = (
    rf"(?:can ?not|can't|could not|couldn't|won't|will not|(?:am|'m|are|'re) {_UNABLE}"
    r"|(?:do not|don't) feel comfortable)"
)
_TELL = r"(?:to |with )?(?:assist|comply|fulfil|provide|providing|describ|generat|creat|produc|process)"
_DEED = (
    rf"(?:{_TELL}|(?:to |with )?(?:help|engag|continu|discuss|answer|extract|rewrit|caption|analy[sz]|participat|"
    r"support|do (?:that|this)|"
    r"(?:see|view|access|open) (?:the |this |that |any |your )?(?:image|image|photo|attachment|content)s?\b))"
)
_BLOCKED = r"(?:cannot be (?:described|processed|fulfilled)|(?:has been|was) (?:blocked|flagged))"
_REFUSAL = re.compile(
    rf"(?:(?:i'm|i am|we're|we are) (?:\w+ )?sorry\b"
    rf"|sorry\W*$|sorry,? (?:but )?(?:i|we|can't|cannot)\b|(?:i|we) (?:sincerely |deeply )?apologi[sz]e\b"
    rf"|(?:my |sincere )?apologies[,.]"
    rf"|(?:(?:unfortunately|however|but|no),? ?)?(?:(?:i'm|i am) afraid,? (?:that )?)?(?:i|we) ?{_CANNOT} {_DEED}"
    rf"|(?:cannot|can't|unable|not able) {_TELL}"
    rf"|(?:i|we) (?:must |have to |need to )?(?:decline|refuse)\b|i(?:'d| would)? (?:prefer|rather) not\b"
    rf"|(?:i|we) (?:do not have|don't have|have no|lack) (?:the |any )?(?:ability|capability|capacity)\b"
    rf"|it(?:'s| is| would be| would)? (?:not (?:be )?appropriate|inappropriate) (?:for me )?to {_DEED}"
    rf"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b|(?:i'm|i am) (?:just |only )?an ai\b"
    rf"|(?:this|that|the|your) (?:request|prompt|query|content|image) "
    rf"(?:violates|goes against (?:my|our|the)\b|{_BLOCKED}))"
)
_ASIDE = re.compile(rf"\b(?:and|but|so|that|which),? (?:i|we) ?{_CANNOT} {_TELL}")  # within a sentence on the image
_SENTENCES = 3  # of an answer in which a refusal may begin


def refused(answer: str) -> bool:
    """Whether an answer is a refusal or says nothing: no letters at all.

    A refusal begins one of the first sentences ("I'm sorry, but I can't ..."), or one of them ends in it ("... and I
    cannot describe it"); words of the kind inside a caption, such as a sign that reads them, do not count.
    """
    text = answer.replace("’", "'").strip().lower()
    if not any(character.isalpha() for character in text):
        return "[" not in text
    sentences = re.split(r"(?<=[.!?])\s+|\n+", _bare(text), maxsplit=_SENTENCES)[:_SENTENCES]
    return any(_REFUSAL.match(sentence.strip()) or _ASIDE.search(sentence) for sentence in sentences)


def _bare(text: str) -> str:
    """Without emphasis, a bullet, a heading (``caption:``), and quotation marks around the whole."""
    text = re.sub(r"^(?:[-*#>_ ]|(?:\w+ ){0,2}caption\W*:)+", "", text).rstrip("*_ ")
    quoted = re.fullmatch(r"[\"'“](.*)[\"'”]", text, flags=re.DOTALL)
    return quoted[1] if quoted and not re.search(r"[\"“”]", quoted[1]) else text
