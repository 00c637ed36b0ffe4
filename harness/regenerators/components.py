"""Reading the vision-language model's answers: unsafe components out of free text, and refusals apart from captions."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.models.refusals import refused
from harness.models.vision_language import Answer

if TYPE_CHECKING:
    from harness.models.vision_language import Turn

MAX_ANSWER = 4096  # characters read of an answer
MAX_ITEMS = 64
MAX_ITEM = 200  # characters of a component
_MAX_DEPTH = 90  # of brackets, within quotes too; well below where the parsers give up
_MAX_SPANS = 16  # bracketed spans tried
_MAX_WORDS = 12  # of a component said in prose: what is longer is talk

REFUSED = "caption:refusal"  # error code of a row whose caption, or rewritten caption, was refused
CUT = "caption-cut"  # note: the model had not ended the answer when it reached its length


class Components(NamedTuple):
    """Unsafe components in the answer's order, and notes on how the answer departed from a plain list.

    Notes: ``refusal``, ``empty``, ``no-list`` (bare text), ``list-cut`` (no closing bracket), ``malformed`` (read by
    its commas), ``nested``, ``not-text`` (items left out), ``several-lists`` (joined), ``too-long`` (cut to the limits
    of this module).
    """

    items: tuple[str, ...]
    notes: tuple[str, ...]


class Caption(NamedTuple):
    """What was read from one image's conversation.

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
    """Captions and components from one image's answers, one per turn as ``Captioner.converse`` gives them.

    Args:
        given: components known without a turn of their own (``turns.given``).
    """
    said = dict(zip((turn.name for turn in turns), answers, strict=True))
    listed = None if given is None else tuple(given)
    notes: tuple[str, ...] = ()
    if "unsafe_components" in said:
        listed, codes = parse(said["unsafe_components"])
        notes = tuple(f"components:{code}" for code in codes)
    cut = [name for name, answer in said.items() if isinstance(answer, Answer) and answer.cut]
    notes += (CUT,) if {"unsafe_caption", "safe_caption"} & set(cut) else ()
    notes += (f"components:{CUT}",) if "unsafe_components" in cut else ()
    unsafe, safe = said["unsafe_caption"], said["safe_caption"]
    return Caption(unsafe, listed, safe, notes, REFUSED if refused(unsafe) or refused(safe) else None)


def clean(answer: str) -> str:
    """The list in an answer as a Python literal, which the next turn quotes; a plain list is returned unchanged."""
    return str(list(parse(answer).items))


def parse(answer: str) -> Components:
    """The components in a model's answer, which may be a list, a list within other text, or bare text.

    Tried in turn: each bracketed span as JSON, as Python's literal, both with plain quotes, by its commas; without
    brackets the lines or commas of the text. Of several lists the result is the union: a component that is missed
    would not be kept out of the rewritten caption. Never raises, and evaluates nothing.
    """
    notes: list[str] = []
    text = answer.strip()
    if "[" not in text and refused(text):
        return Components((), ("empty" if not text else "refusal",))
    if len(text) > MAX_ANSWER:
        text, notes = text[:MAX_ANSWER], ["too-long"]
    text = _unfenced(text)
    named = _named(text)
    if named is not None:
        items = list(_strings([named], notes := [*notes]))
        notes = [note for note in notes if note != "nested"]
    elif "[" not in text:
        notes.append("no-list")
        items = _from_prose(text)
    else:
        items = _from_lists(text, notes)
    items = [item for item in items if not _says_none(item, alone=len(items) == 1)]
    kept = [item[:MAX_ITEM] for item in items[:MAX_ITEMS]]
    if kept != items:
        notes.append("too-long")
    if not kept:
        notes.append("empty")
    return Components(tuple(kept), tuple(dict.fromkeys(notes)))


def _from_lists(text: str, notes: list[str]) -> list[str]:
    """Items of all bracketed lists of a text, the first first."""
    value, rest = _first_list(text)
    if value is None:
        whole = text[text.index("[") :]
        notes.append("malformed" if "]" in whole else "list-cut")
        bare = _bare_lists(text) if "]" in whole else [whole]
        items = list(_strings(_by_commas(bare[0] if bare else next(_spans(text))[0]), notes))
        others = [_by_commas(span) for span in bare[1:]]
    else:
        items = list(_strings(value, notes))
        before = text[: len(text) - len(rest)]
        others = [_by_commas(span) for span in _bare_lists(before[: _start_of_list(before)])]
        while "[" in rest:
            value, after = _first_list(rest)
            if value is None:
                others += [_by_commas(span) for span in _bare_lists(rest)]
                break
            others.append(value)
            rest = after
    for other in others:
        more = [item for item in _strings(other, []) if item not in items]
        notes += ["several-lists"] if more else []
        items += more
    return items


def _start_of_list(text: str) -> int:
    """Where the last bracketed span of a text that ends with it begins."""
    return next((i for i, c in enumerate(text) if c == "[" and _literal(_repaired(text[i:])) is not None), len(text))


def _bare_lists(text: str) -> list[str]:
    """Bracketed spans side by side whose items are no literals, without remarks (``[Note: ...]``) and long talk."""
    spans, start = [], text.find("[")
    while start >= 0:
        span = _balanced(text, start)
        if span is None:
            break
        talk = ":" in span or any(len(part.split()) > _MAX_WORDS for part in span.split(","))
        if not talk and re.search(r"[^\W\d_]", span):
            spans.append(span)
        start = text.find("[", start + len(span))
    return spans


def _named(text: str) -> dict[str, Any] | None:
    """The object that a text is, ``{"elements": [...]}``; None where it is none."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start or re.search(r"[^\W_]", text[end + 1 :]) or "[" in text[:start]:
        return None
    for spelled in (str, _plainly):
        value = _evaluated(_repaired(spelled(text[start : end + 1])))
        if isinstance(value, dict):
            return value
    return None


def _first_list(text: str) -> tuple[list[Any] | None, str]:
    """The first bracketed span that is a list, and the text after it; None and "" where there is none."""
    for spans in _spans(text):
        for spelled in (str, _plainly):  # first as it stands: a quote may be part of an item
            for span in spans:
                value = _literal(_repaired(spelled(span)))
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
    value = _evaluated(span, kind=list)
    return value if isinstance(value, list) else None


def _evaluated(span: str, kind: type = dict) -> Any:
    """The span as JSON or Python's literal of a kind; None if it is none. Nothing is executed."""
    if _depth(span) > _MAX_DEPTH:
        return None
    for evaluate in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown escapes such as \d
                value = evaluate(span)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, kind):
            return value
    return None


def _repaired(span: str) -> str:
    """The span with a comma between texts that stand side by side, which Python would join into one."""
    lines = span.splitlines(keepends=True)
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(span).readline) if t.type not in _BLANK]
    except (tokenize.TokenError, SyntaxError, RecursionError):
        return span
    for one, following in reversed(list(itertools.pairwise(tokens))):
        if one.type == following.type == tokenize.STRING:
            row, column = one.end
            lines[row - 1] = f"{lines[row - 1][:column]},{lines[row - 1][column:]}"
    return "".join(lines)


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
            yield from _strings(_values(item) if isinstance(item, dict) else item, notes)
        else:
            notes.append("not-text")


def _values(item: dict[Any, Any]) -> list[Any]:
    """What an object names: its element, not the reasons beside it; a name that is marked true."""
    keys = {key: str(key).strip().lower() for key in item}
    named = [item[key] for key, name in keys.items() if _ELEMENT.search(name)]
    marked = [key for key, value in item.items() if value is True]
    return named or marked or [item[key] for key, name in keys.items() if not _REMARK.search(name)]


_BLANK = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
_ELEMENT = re.compile(r"element|component|item|phrase|term\b|word|object|^name$|^text$|^label$|^value$|^unsafe")
_REMARK = re.compile(
    r"reason|explan|why|descri|rational|justif|categor|type|kind|sever|confiden|score|note|comment|context|source|locat|"
    r"caption|safe|^id$"
)


def _says_none(item: str, *, alone: bool) -> bool:
    """Whether an item says that there is nothing; "no clothes" and "no head" say what is to be seen."""
    if _NONE.fullmatch(item) and alone:
        return True
    if re.match(r"(?i:none|n/?a|null|not applicable)(?:$|\W|\s)", item) and not re.search(r"(?i)\bbut\b|except", item):
        return True
    return bool(_NEGATED.match(item) and not _LACKING.search(item) and (alone or _UNSAFE.search(item)))


_NEGATED = re.compile(r"(?i:no|not|without|absence of|lack of|free (?:of|from)|zero|nothing)\b")
_LACKING = re.compile(  # what a picture shows by its absence
    r"(?i)cloth|garment|underwear|\bbras?\b|shirt|\btops?\b|pants|dress|skirt|shoe|trouser|cover|bikini|suit|fabric|coat|"
    r"jacket|wear|attire|head|limb|arms?\b|legs?\b|hands?\b|eyes?\b|face|skin|\bbut\b|except"
)
_UNSAFE = re.compile(
    r"(?i)nud|naked|explicit|sex|erotic|porn|violen|blood|gore|gory|gun|weapon|cruel|unsafe|harm|inappropriate|offensive|"
    r"graphic|nsfw|element|component|content|item|mention|reference|present|visible|found|shown|detected|described"
)
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
    bullet = _BULLET.match(text)
    if bullet:  # entries on one line: "1. gun 2. blood", "- gun - blood"
        text = re.sub(rf"(?<=\S)[ \t]+(?={_kin(bullet[1])}\s)", "\n", text)
    lines = text.splitlines()
    if sum(bool(_BULLET.match(line)) for line in lines) > 1:  # an entry may be explained: "1. **gun**: in his hand"
        lines = [re.sub(r":\s.*", "", line) for line in lines if _BULLET.match(line)]
    bare = (_BULLET.sub("", part) for line in lines for part in re.split(r"[,;、，]", line))
    items = (" ".join(part.strip(" .:;\"'“”‘’`*").split()) for part in bare)
    return [re.sub(r"^and\s+", "", item) for item in items if item and len(item.split()) <= _MAX_WORDS]


def _kin(bullet: str) -> str:
    """A pattern of the bullets that go with one."""
    if any(character.isdigit() for character in bullet):
        return re.sub(r"\d+", r"\\d+", re.escape(bullet))
    return re.sub(r"[a-h](?=\\\))", "[a-h]", re.escape(bullet))


_BULLET = re.compile(r"^\s*([-*•–]|\(?\d+[.)]|\(?[a-h]\))\s+")
