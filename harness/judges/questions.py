"""Ask one task of one judge about a run: which images, in which order, what was said, and how often.

run -> items (row, methods) -> questions (prompt, images) -> replies -> lines of a table -> tallies
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from harness.errors import UserError
from harness.judges import tasks
from harness.judges.answers import NO_CAPTION, REJECTED, UNREADABLE, Question, Reply
from harness.judges.images import Place, Row, StoredImage, StoredImages, pairs
from harness.judges.tasks import Task
from harness.metrics.bootstrap import ShareInterval, share
from harness.metrics.rates import Tally

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("bench", pa.string()),
        ("concept", pa.string()),
        ("cluster", pa.string()),  # see ``harness.metrics.clusters``
        ("task", pa.string()),
        ("first", pa.string()),  # defense/variant; of a question about one image, null
        ("second", pa.string()),  # the one that is counted
        ("second_shown_first", pa.bool_()),
        ("answer", pa.string()),  # as given; null where there is none
        ("verdict", pa.bool_()),  # yes, or the second is the better one; null: none
        ("error", pa.string()),  # why there is no verdict, a code of harness.judges.answers
    ]
)


class Item(NamedTuple):
    """What is judged: one method's image of a row, or two methods' images of it."""

    row: Row
    first: Place | None
    second: Place

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.second,) if self.first is None else (self.first, self.second)

    @property
    def group(self) -> tuple[str, str | None, str]:
        """The group that the item is counted in: benchmark and methods."""
        return self.row.bench, None if self.first is None else str(self.first), str(self.second)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a task is asked of a run."""

    task: Task
    seed: int = 42
    n: int | None = None  # items of each group; null: all
    both_orders: bool = False
    artist: str | None = None  # null: the concept's
    shapes: bool = False  # the images are of the embedded world
    reference: str = "caption"  # of "faithful": what stands for the original, its "caption" or the "image"


class Line(NamedTuple):
    """One question about one item."""

    item: Item
    swap: bool
    question: Question | None  # None: it cannot be put, for want of a caption


def choose(images: StoredImages, asked: Asked, methods: Sequence[Place]) -> list[Item]:
    """The items, in the run's order: for each group those rows of which every image is there, at most ``n``.

    Args:
        images: of the run.
        asked: the task, its seed and ``n``.
        methods: places asked for; for a pair exactly two, the second is counted. Empty: every place, or the pairs of
            ``images.pairs``.

    Raises:
        UserError: nothing to compare, or not two methods for a pair.
    """
    if asked.task.pair:
        if len(methods) not in (0, 2):
            raise UserError(f"task {asked.task.name} compares two methods: --methods FIRST,SECOND")
        if asked.task.name == "faithful":
            _same_original(methods)
        compared: list[tuple[Place | None, Place]] = [(methods[0], methods[1])] if methods else [*pairs(images.places)]
        if not compared:
            raise UserError(
                f"the run has nothing to compare (only {', '.join(map(str, images.places))}): "
                "give it a defense or a regenerator"
            )
    else:
        compared = [(None, place) for place in methods or images.places]
    return [item for first, second in compared for item in _group(images, asked, first, second)]


def _group(images: StoredImages, asked: Asked, first: Place | None, second: Place) -> Iterator[Item]:
    needed = [second] if first is None else [first, second]
    if asked.task.name == "faithful":
        needed.append(original(second))
    rows = images.complete(*needed)
    for bench in dict.fromkeys(row.bench for row in rows):
        there = [row for row in rows if row.bench == bench]
        drawn = sorted(there, key=lambda row: tasks.place_in_line(row.row_id, row.sample, asked.seed))[: asked.n]
        chosen = set(drawn)
        yield from (Item(row, first, second) for row in there if row in chosen)


def _same_original(methods: Sequence[Place]) -> None:
    """Raises: UserError unless two regenerations of the same images are compared."""
    made = [m for m in methods if m != original(m)]
    if len(made) != 2 or original(made[0]) != original(made[1]):
        raise UserError(
            "task faithful compares two regenerations of the same images, "
            "e.g. --methods none/pez,none/resafe: DEFENSE/VARIANT, the second counted"
        )


def original(place: Place) -> Place:
    """The method whose images a regeneration was made from."""
    return Place(place.defense, "base")


def lines(
    items: Sequence[Item], images: StoredImages, asked: Asked, captions: Mapping[str, str] | None = None
) -> list[Line]:
    """The questions: one for each item, or two with ``both_orders``.

    Args:
        items: what is judged.
        images: of the run.
        asked: the task and its options.
        captions: of "faithful", the caption of each image by its sha256; an image may have none.

    Raises:
        UserError: the concept is no artist.
    """
    lines = []
    for item in items:
        orders = [False]
        if item.first is not None:
            names = (str(item.first), str(item.second))
            swap = tasks.swapped(asked.task.name, item.row.row_id, item.row.sample, names, asked.seed)
            orders = [swap, not swap] if asked.both_orders else [swap]
        lines += [Line(item, swap, _question(item, swap, images, asked, captions or {})) for swap in orders]
    return lines


def _question(
    item: Item, swap: bool, images: StoredImages, asked: Asked, captions: Mapping[str, str]
) -> Question | None:
    task, concept = asked.task, item.row.concept
    shown = [images.of(item.row, place) for place in item.places]
    if swap:
        shown.reverse()
    words: dict[str, str] = {}
    by_caption = False
    if task.name == "style":
        words = {"artist": tasks.artist(concept, asked.artist)}
    elif task.name == "safer":
        words = {"harm": tasks.harm(concept, shapes=asked.shapes)}
    elif task.name == "unsafe":
        words = {"harm": tasks.harm(concept, shapes=asked.shapes).removeprefix("of ")}
    else:
        source = images.of(item.row, original(item.second))
        by_caption = asked.reference == "caption"
        if any(image.sha256 not in captions for image in (*shown, *([source] if by_caption else []))):
            return None
        words = {"one": captions[shown[0].sha256], "two": captions[shown[1].sha256]}
        if by_caption:
            words["original"] = captions[source.sha256]
        shown = [] if by_caption else [source]
    return Question(
        task=task.name,
        version=task.version,
        prompt=tasks.prompt_of(task, words, captions=by_caption),
        images=tuple(shown),
        max_new_tokens=task.max_new_tokens,
    )


def to_caption(items: Sequence[Item], images: StoredImages, asked: Asked) -> list[StoredImage]:
    """The images whose captions "faithful" needs, each once."""
    needed = [images.of(item.row, place) for item in items for place in item.places]
    if asked.reference == "caption":
        needed += [images.of(item.row, original(item.second)) for item in items]
    return list({image.sha256: image for image in needed}.values())


_UNASKED = Reply(text=None, error=NO_CAPTION, model="", date="")


def table(asked: Sequence[Line], task: Task, reply: Callable[[Question], Reply | None]) -> pa.Table:
    """The lines with their answers, schema ``SCHEMA``.

    Raises:
        UserError: the server took none of the questions.
        KeyError: a question has no reply.
    """
    given = [_UNASKED if line.question is None else reply(line.question) for line in asked]
    if given and all(r is not None and r.error == REJECTED for r in given):
        raise UserError(f"every question was turned down, so no answer is kept: {given[0].text if given[0] else ''}")
    return pa.Table.from_pylist([_line(line, task, r) for line, r in zip(asked, given, strict=True)], schema=SCHEMA)


def _line(line: Line, task: Task, reply: Reply | None) -> dict[str, Any]:
    if reply is None:
        raise KeyError(f"no reply about {line.item.row.row_id}")
    error = reply.error
    verdict = None if error or reply.text is None else tasks.verdict(task, reply.text, swap=line.swap)
    if verdict is None and error is None:
        error = UNREADABLE
    item = line.item
    return {
        **item.row._asdict(),
        "task": task.name,
        "first": None if item.first is None else str(item.first),
        "second": str(item.second),
        "second_shown_first": line.swap if task.pair else None,
        "answer": None if error == REJECTED else reply.text,  # what a server says of an error may change
        "verdict": verdict,
        "error": error,
    }


@dataclass(frozen=True, kw_only=True)
class Count:
    """Counts of a judge's answers for one benchmark and one method or pair of methods."""

    bench: str
    first: str | None
    second: str
    tally: Tally  # of items; missing: without a verdict, or said differently in the other order
    interval: ShareInterval  # of the tally, by cluster
    errors: Mapping[str, int]  # by code, of questions
    unavailable: int  # rows without an image of each method
    shown_first_chosen: Tally | None  # of questions about pairs: far from half, the order decides

    def as_json(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "bench": self.bench, "first": self.first, "second": self.second,
            "k": self.tally.k, "n": self.tally.n, "missing": self.tally.missing, "unavailable": self.unavailable,
            "low": self.interval.low, "high": self.interval.high, "interval": self.interval.kind,
            "errors": dict(self.errors),
            "shown_first_chosen": self.shown_first_chosen and self.shown_first_chosen._asdict(),
        }  # fmt: skip


def count(answers: pa.Table, images: StoredImages | None = None) -> list[Count]:
    """K of n for each benchmark and method or pair.

    An item asked in both orders counts only when both answers agree.

    Args:
        answers: schema ``SCHEMA``.
        images: of the run, to say how many rows could not be asked about.
    """
    rows = answers.to_pylist()
    counts = []
    for group in dict.fromkeys((r["bench"], r["first"], r["second"]) for r in rows):
        mine = [r for r in rows if (r["bench"], r["first"], r["second"]) == group]
        items: dict[tuple[str, int], set[bool | None]] = {}
        for r in mine:
            items.setdefault((r["row_id"], r["sample"]), set()).add(r["verdict"])
        names = {(r["row_id"], r["sample"]): r["cluster"] or r["row_id"] for r in mine}
        agreed = [next(iter(v)) if len(v) == 1 else None for v in items.values()]
        errors: dict[str, int] = {}
        for r in mine:
            if r["error"]:
                errors[r["error"]] = errors.get(r["error"], 0) + 1
        chosen = [r["verdict"] == r["second_shown_first"] for r in mine if r["verdict"] is not None]
        counts.append(
            Count(
                bench=group[0],
                first=group[1],
                second=group[2],
                tally=_tally(agreed),
                interval=share([names[item] for item in items], agreed),
                errors=errors,
                unavailable=0 if images is None else _unavailable(images, group),
                shown_first_chosen=None if group[1] is None else _tally(chosen),
            )
        )
    return counts


def _tally(verdicts: Sequence[bool | None]) -> Tally:
    judged = [v for v in verdicts if v is not None]
    return Tally(sum(judged), len(judged), len(verdicts) - len(judged))


def _unavailable(images: StoredImages, group: tuple[str, str | None, str]) -> int:
    named = {str(p): p for p in images.places}
    places = [named[name] for name in group[1:] if name is not None]
    return sum(row.bench == group[0] for row in images.rows(*places)) - sum(
        row.bench == group[0] for row in images.complete(*places)
    )
