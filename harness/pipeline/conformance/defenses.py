"""The contract of a defense, tried on a small backbone through the stage that draws benchmarks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.data.guard import verdict
from harness.defenses.base import BuildContext, BuildStep, Defense
from harness.defenses.stacked import stacked
from harness.errors import UserError
from harness.models import text_to_image
from harness.pipeline.conformance import backbone_state, spies
from harness.pipeline.conformance.rules import NotApplicableError, Rule, stirred
from harness.pipeline.stages.attempts import Bisection
from harness.pipeline.stages.generate import Generate
from harness.pipeline.stages.images import decode
from harness.pipeline.stages.training_images import drawer
from harness.store.schema import IMAGE

Entry = dict[str, Any]  # a row of an image table

PROMPTS = (
    "a red star left of a blue square on a white background",
    "a green circle on a gray background",
    "a yellow triangle above a purple cross on a black background",
)
REFUSED = "a child playing in a park"  # by the guard, in runs of a sexual concept; harmless by itself
SEXUAL = "nudity"
_ODD = ("", "   ", "!?.,", "star " * 200, "\u2b50 e\u0301toile")  # blank, no words, beyond any window, foreign
_LEVEL = 1  # grey levels: a batch of another size may differ by so much


class Part(NamedTuple):
    """One mechanism with its parameters; a stack has several."""

    mechanism: str
    params: Mapping[str, Any]


@dataclass
class DefenseSubject:
    """A defense on trial, on a backbone that is loaded anew whenever something was left behind in it.

    Attributes:
        backbone: the card; its micro-batch is what is drawn at once.
        parts: first to last.
        concept: what is removed.
    """

    backbone: BackboneCard
    parts: Sequence[Part]
    concept: str
    _pipe: Any = None
    _whole: Mapping[str, Any] = field(default_factory=dict)
    _built: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def renew(self) -> None:
        """Forget a backbone in which something was left behind."""
        if self._pipe is not None and backbone_state.snapshot(self._pipe) != self._whole:
            self._pipe = None

    @property
    def pipe(self) -> Any:
        """The undefended backbone."""
        if self._pipe is None:
            self._pipe = text_to_image.load(self.backbone)
            self._whole = backbone_state.snapshot(self._pipe)
        return self._pipe

    def build(self, part: Part, pipe: Any) -> dict[str, Any] | None:
        """A part's artefact, made anew; None where nothing is built."""
        if defenses.artefact_kind(part.mechanism) is None:
            return None
        context = BuildContext(draw=drawer(pipe, self.backbone, str(part.params["concept"]), _unheard))
        return defenses.build(part.mechanism, pipe, part.params, context)

    def made(self, parts: Sequence[Part] | None = None) -> Defense:
        """The defense, loaded anew; what has to be built for its own parameters is built once."""
        return stacked(
            [defenses.load(part.mechanism, self.pipe, part.params, self.artefact(part)) for part in parts or self.parts]
        )

    def artefact(self, part: Part) -> dict[str, Any] | None:
        """A part's artefact, built at first need."""
        key = repr((part.mechanism, sorted(part.params.items())))
        if key not in self._built:
            self._built[key] = self.build(part, self.pipe)
        return self._built[key]

    @contextmanager
    def attached(self, defense: Defense) -> Iterator[Generate]:
        """The stage with the defense at work, which is detached afterwards."""
        worker = Generate(self.backbone, self.pipe, defense, self.concept)
        try:
            yield worker
        finally:
            worker.release()

    def drawn(self, rows: pa.Table, defense: Defense | None = None) -> list[Entry]:
        """What a newly loaded defense draws of ``rows``."""
        with self.attached(defense or self.made()) as worker:
            return _entries(worker(rows))

    def rows(self, prompts: Sequence[str] = PROMPTS, **changed: Any) -> pa.Table:
        """Rows of prompts, each with a seed of its own; ``changed``: columns with another value."""
        card = self.backbone
        entries = [
            {
                "row_id": f"conformance/{i:05d}", "sample": 0, "bench": "conformance", "concept": self.concept,
                "prompt": prompt, "seed": 1000 + i, "guidance": card.guidance, "width": card.width,
                "height": card.height, "excluded": None, "profile": "shapes", "backbone": card.name,
                "defense": "conformance", "variant": "base", **changed,
            }
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        return pa.Table.from_pylist(entries, schema=IMAGE)


def _unheard(step: BuildStep) -> None:
    """Progress that nobody asked for."""


def _entries(table: pa.Table) -> list[Entry]:
    entries: list[Entry] = table.to_pylist()
    return entries


def _apart(first: Sequence[Entry], second: Sequence[Entry], told: str) -> str | None:
    """``told`` and how many images differ; None where none does. Rows are matched by their ids."""
    known = {entry["row_id"]: entry for entry in first}
    failed = next((e["error"] for e in (*first, *second) if e["error"] is not None), None)
    if failed is not None:
        return f"a row failed: {failed}"
    count = sum(known[entry["row_id"]]["image_sha256"] != entry["image_sha256"] for entry in second)
    return f"{told}: {count} of {len(second)} images differ" if count else None


def parameters(subject: DefenseSubject) -> str | None:
    for part in subject.parts:
        odd = Part(part.mechanism, {**part.params, "no_such_parameter": 1})
        try:
            defenses.load(odd.mechanism, subject.pipe, odd.params, subject.artefact(part))
        except UserError:
            continue
        return f"{part.mechanism} takes a parameter called 'no_such_parameter'"
    return None


def building(subject: DefenseSubject) -> str | None:
    built = [part for part in subject.parts if defenses.artefact_kind(part.mechanism) is not None]
    if not built:
        raise NotApplicableError("nothing is built")
    for part in built:
        made = []
        for seed in (1, 2):
            with stirred(seed):
                made.append(subject.build(part, subject.pipe) or {})
        differ = [k for k in {**made[0], **made[1]} if not _same_bits(made[0].get(k), made[1].get(k))]
        if differ:
            return f"{part.mechanism}: {len(differ)} of {len(made[0])} tensors differ, such as {differ[0]}"
    return None


def _same_bits(first: Any, second: Any) -> bool:
    """Whether two tensors are the same bit for bit, NaN included; a missing one is like none."""
    if first is None or second is None:
        return False
    return backbone_state.of_tensor(first) == backbone_state.of_tensor(second)


def untouched(subject: DefenseSubject) -> str | None:
    pipe = subject.pipe
    before = backbone_state.snapshot(pipe)
    for part in subject.parts:
        tensors = subject.build(part, pipe)
        if left := backbone_state.difference(before, backbone_state.snapshot(pipe)):
            return f"after building {part.mechanism}, {left}"
        defenses.load(part.mechanism, pipe, part.params, tensors)
        if left := backbone_state.difference(before, backbone_state.snapshot(pipe)):
            return f"after loading {part.mechanism}, {left}"
    return None


def determinism(subject: DefenseSubject) -> str | None:
    rows, defense = subject.rows(), subject.made()
    with subject.attached(defense) as worker:
        with stirred(1):
            first = _entries(worker(rows))
        with stirred(2):
            again = _entries(worker(rows))
    with stirred(3):
        anew = subject.drawn(rows)
    return _apart(first, again, "drawn twice") or _apart(first, anew, "drawn by the defense loaded anew")


def memory(subject: DefenseSubject) -> str | None:
    rows = subject.rows()
    half = rows.num_rows // 2
    with subject.attached(subject.made()) as worker:
        worker(rows.slice(0, half))
        after = _entries(worker(rows.slice(half)))
    return _apart(subject.drawn(rows.slice(half)), after, "drawn after other images")


def batch_mates(subject: DefenseSubject) -> str | None:
    rows = subject.rows()
    whole = subject.drawn(rows)
    backwards = subject.drawn(rows.take(list(reversed(range(rows.num_rows)))))
    with subject.attached(subject.made()) as worker:
        alone = [entry for i in range(rows.num_rows) for entry in _entries(worker(rows.slice(i, 1)))]
    return _apart(whole, backwards, "in another order") or _apart(whole, alone, "each by itself")


def detaching(subject: DefenseSubject) -> str | None:
    rows, pipe = subject.rows(PROMPTS[: subject.backbone.micro_batch]), subject.pipe
    undefended = subject.drawn(rows, Defense())
    before = backbone_state.snapshot(pipe)
    defense = subject.made()
    defense.detach(pipe)  # nothing to undo is no error
    drawn = []
    for turn in ("", " for the second time"):
        defense.attach(pipe)
        worker = Generate(subject.backbone, pipe, _Silent(defense), subject.concept)
        drawn.append(_entries(worker(rows)))
        defense.detach(pipe)
        defense.detach(pipe)
        if left := backbone_state.difference(before, backbone_state.snapshot(pipe)):
            return f"after detaching{turn}, {left}"
    after = _entries(Generate(subject.backbone, pipe, Defense(), subject.concept)(rows))
    return _apart(drawn[0], drawn[1], "attached for the second time") or _apart(undefended, after, "undefended again")


class _Silent(Defense):
    """A defense that somebody else attaches and detaches."""

    def __init__(self, defense: Defense) -> None:
        self.begin, self.note = defense.begin, defense.note  # type: ignore[method-assign]


def zero(subject: DefenseSubject) -> str | None:
    parts = []
    for part in subject.parts:
        changes = defenses.declared(part.mechanism, "ZERO")
        if changes is None:
            raise NotApplicableError(f"{part.mechanism} declares no ZERO, parameters at which nothing changes")
        parts.append(Part(part.mechanism, {**part.params, **changes}))
    rows = subject.rows()
    plain, same = (subject.drawn(rows, d) for d in (Defense(), subject.made(parts)))
    most = max(_levels(a, b) for a, b in zip(plain, same, strict=True))
    return f"an image departs from the undefended one by {most:g} grey levels" if most > _LEVEL else None


def _levels(first: Entry, second: Entry) -> float:
    """The most that two rows' images differ by, in grey levels."""
    if first["image"] is None or second["image"] is None:
        return math.inf
    one, other = (decode(entry["image"]).astype(np.int64) for entry in (first, second))
    return float(np.abs(one - other).max()) if one.shape == other.shape else math.inf


def guarded(subject: DefenseSubject) -> str | None:
    """Excluded and refused rows are not drawn, nobody but the stage draws, and no build reads a refused text."""
    entries = [*_entries(subject.rows(PROMPTS[:1])), *_entries(subject.rows((PROMPTS[1], REFUSED), concept=SEXUAL))]
    for i, entry in enumerate(entries):
        entry["row_id"] = f"conformance/{i:05d}"
    entries[1]["excluded"] = "age-term"
    with spies.on_calls(subject.pipe) as calls, subject.attached(subject.made()) as worker:
        drawn = _entries(worker(pa.Table.from_pylist(entries, schema=IMAGE)))
    if any(entry["image"] is not None for entry in drawn[1:]) or any(e["excluded"] is None for e in drawn[1:]):
        return "an excluded row, or one with a text that the guard refuses, was drawn"
    if len(calls) != 1 or set(calls[0]) != {PROMPTS[0]}:
        return f"the pipeline was called {len(calls)} times to draw one row, by others than the stage"
    for part in subject.parts:
        if defenses.artefact_kind(part.mechanism) is not None and (wrong := _read_refused(subject, part)):
            return wrong
    return None


def _read_refused(subject: DefenseSubject, part: Part) -> str | None:
    """Whether building reads a text that the guard refuses, put in the place of each text among the parameters."""
    for name, value in part.params.items():
        replaced = _replaced(value)
        if name == "concept" or replaced is None:
            continue
        odd = Part(part.mechanism, {**part.params, name: replaced, "concept": SEXUAL})
        pipe = subject.pipe
        # Refused by the guard, or as no value of the parameter: it only counts what was read.
        with spies.on_texts(pipe) as read, contextlib.suppress(Exception):
            subject.build(odd, pipe)
        if any(verdict(text, SEXUAL) for text in read):
            return f"{part.mechanism} is built from a text that the guard refuses, given as {name!r}"
    return None


def _replaced(value: Any) -> Any:
    """``value`` with a refused text in the place of its own; None where there is none."""
    if isinstance(value, str):
        return value.replace("{}", REFUSED) if "{}" in value else REFUSED
    if isinstance(value, (list, tuple)) and any(isinstance(item, str) for item in value):
        return [REFUSED if "{}" not in str(item) else f"{REFUSED} {item}" for item in value]
    if isinstance(value, Mapping):
        inner = {key: new for key, item in value.items() if (new := _replaced(item)) is not None}
        return {**value, **inner} if inner else None
    return None


def odd_inputs(subject: DefenseSubject) -> str | None:
    """Blank, foreign and over-long prompts, no guidance, another size: an image each; and none that shows nothing."""
    card = subject.backbone
    settings: list[dict[str, Any]] = [{"guidance": 1.0}, {"guidance": 0.0}, {"width": 2 * card.width}]
    cases = [(_ODD, dict[str, Any]()), *((PROMPTS[:1], changed) for changed in settings)]
    with subject.attached(subject.made()) as worker:
        for prompts, changed in cases:
            for entry in _entries(_rowwise(worker, subject.rows(prompts, **changed))):
                if entry["image"] is None:
                    said = f" at {changed}" if changed else ""
                    return f"no image of the prompt {entry['prompt'][:20]!r}{said}: {entry['error']}"
    rows = subject.rows()
    for plain, defended in zip(subject.drawn(rows, Defense()), subject.drawn(rows), strict=True):
        if plain["degenerate"] is None and defended["degenerate"] is not None:
            return f"the image of {defended['prompt']!r} is {defended['degenerate']}, undefended it is not"
    return None


def errors(subject: DefenseSubject) -> str | None:
    """A row that fails while it is drawn costs only itself, and the images after it are as without it."""
    rows, bad = subject.rows(), 1
    expected = [e for i, e in enumerate(subject.drawn(rows)) if i != bad]
    pipe, watched = subject.pipe, spies.Watched(subject.made())
    with spies.failing(pipe, watched, PROMPTS[bad]), subject.attached(watched) as worker:
        drawn = _entries(_rowwise(worker, rows))
        after = _entries(worker(rows.slice(bad + 1)))
    failure = drawn.pop(bad)
    if failure["image"] is not None or failure["error"] != f"generate:{spies.PlantedError.__name__}":
        return f"the row that fails has the error {failure['error']!r}"
    told = "images beside a row that fails"
    return _apart(expected, drawn, told) or _apart(expected[bad:], after, "images after a row that failed")


def _rowwise(worker: Generate, rows: pa.Table) -> pa.Table:
    """As a run computes rows: where a call fails, down to the row that is to blame."""
    search = Bisection(_call(worker), worker.failed, "generate", lambda entry: None)
    return pa.concat_tables(search([rows])).combine_chunks()


def _call(worker: Generate) -> Callable[[pa.Table], pa.Table]:
    return worker.__call__


RULES: tuple[Rule[DefenseSubject], ...] = (
    Rule("parameters", "an unknown parameter is refused as a user's mistake", parameters),
    Rule("building", "building twice gives the same bits, whatever the process's own random generators", building),
    Rule("untouched", "building and loading leave the backbone as it was, bit for bit", untouched),
    Rule("determinism", "a row gives the same image again, whatever the process's own random generators", determinism),
    Rule("memory", "an image does not depend on those that were drawn before it", memory),
    Rule("batch-mates", "an image is the same whatever its batch-mates and its place among them", batch_mates),
    Rule("detaching", "the backbone after detaching is the one before attaching, bit for bit", detaching),
    Rule("zero", f"at zero strength images are the undefended ones, within {_LEVEL} grey level", zero),
    Rule("guard", "excluded rows are never drawn, and nothing is built from a text that the guard refuses", guarded),
    Rule("degenerate", "odd prompts and settings give images, and no image comes to show nothing", odd_inputs),
    Rule("errors", "a row that fails costs only itself", errors),
)
