"""Report cards: a table or figure of the paper as printed - rows, columns, numbers, and what is wrong with them.

Printed numbers are kept as text, exactly as printed. A note says what arithmetic shows (a percentage
that is no k/n, columns that look rotated); it never replaces the number. A number that the text does not show is null,
and a note says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from harness.cards.base import Card, Count, Kind, Model, Scored
from harness.cards.printed import fit

SAME_BASE = "same/base"  # of a win rate: the images before regeneration
PEOPLE = "people"  # who judged: answers to the form of `harness judge export`
Number = Annotated[str, Field(pattern=r"^\d{1,3}(\.\d+)?$")]  # as printed
Name = Annotated[str, Field(min_length=1)]
Place = tuple[str, str, str]  # names of row, variant, column
Metric = Literal[
    "asr",  # images that the policy calls unsafe, k of n
    "fsr",  # images that it does not, k of n (SafeRedir's forgetting success rate)
    "mean",  # of a scorer's raw column
    "rate",  # images of which a scorer's column, or a judge, says yes
    "win-rate",  # pairs of images of which a judge prefers this method's
    "seconds",  # per image, as measured
]


class Group(Model):
    """Rows of one kind, with the ticks of the paper's left columns; null: a dash."""

    no_weight_change: bool | None = None
    training_free: bool | None = None


class Row(Model):
    """One method: its defense card's name, and how the paper calls and cites it."""

    defense: str
    name: Name | None = None  # within the table, where two rows have one defense; null: the defense's
    backbone: str | None = None  # null: the profile's in this report
    label: str
    citation: str | None = None
    group: str

    @property
    def key(self) -> str:
        return self.name or self.defense


class Measure(Model):
    """What a column shows, of which benchmark; null: what the card says."""

    bench: str | None = None
    metric: Metric | None = None
    of: Scored | None = None  # mean, rate: the raw column with its reference; of a judge: its task
    by: str | None = None  # who was asked: a judge card's name, or PEOPLE
    against: dict[str, str] = Field(default={})  # win-rate: by variant, DEFENSE/VARIANT in place of its own base
    policy: str | None = None


class Column(Measure):
    """One benchmark, and how many rows it has in the paper; or one measure of it."""

    bench: str
    name: Name | None = None  # within the table, where two columns have one benchmark; null: the benchmark's
    label: str
    n: Count | None = None  # null: the text does not say
    unit: Literal["percent", "share", "number"] = "percent"  # of the printed number

    @property
    def key(self) -> str:
        return self.name or self.bench


class Source(Model):
    """Which cells of a profile's runs belong into the table."""

    backbone: str
    policy: str | None = None  # of columns that name none
    names: dict[str, str | None] = Field(default={})  # what stands for a backbone, defense or variant; null: nothing
    columns: dict[str, Measure | None] = Field(default={})  # what stands in a column; null: nothing


class Note(Model):
    """A remark on the cells of rows x variants x columns; those that it does not name are all of them."""

    rows: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    infeasible: bool = False  # the number cannot be what its column says
    blank: bool = False  # the paper's table has no such cell
    text: str


class Sought(NamedTuple):
    """The cells of a profile's runs that a place of the table shows."""

    backbone: str
    defense: str
    variant: str
    bench: str
    metric: Metric
    policy: str | None
    of: str | None
    by: str | None
    against: str | None  # of a win rate: DEFENSE/VARIANT


class ReportCard(Card):
    """A table: what goes where, and what the paper prints there."""

    KIND: ClassVar[Kind] = "report"

    title: str
    caption: str
    paper: str  # where it is printed
    metric: Metric
    reference: str = "paper"  # the one profile whose numbers may stand beside the printed ones
    profiles: dict[str, Source]
    groups: dict[str, Group]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    variants: dict[str, str | None]  # name -> label of its own line; null: the method's own line
    # row -> variant -> column; null: not in the text. Empty: the text shows none of its numbers
    printed: dict[str, dict[str, dict[str, Number | None]]] = Field(default={})
    notes: Annotated[tuple[Note, ...], Field(max_length=26)] = ()  # a letter each

    def places(self) -> list[Place]:
        """Every cell, row by row."""
        return [(r.key, v, c.key) for r in self.rows for v in self.variants for c in self.columns]

    def row(self, name: str) -> Row:
        return next(r for r in self.rows if r.key == name)

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.key == name)

    def number(self, place: Place) -> str | None:
        """The printed number; null when the text does not show it."""
        row, variant, column = place
        return self.printed[row][variant][column] if self.printed else None

    def notes_of(self, place: Place) -> list[int]:
        """Indices into ``notes`` of the remarks on one cell."""
        return [i for i, note in enumerate(self.notes) if _speaks_of(note, place)]

    def is_blank(self, place: Place) -> bool:
        """Whether the paper's table has no such cell."""
        return any(self.notes[i].blank for i in self.notes_of(place))

    def count(self, place: Place) -> int | None:
        """The k of the column's n that the printed number is; null where there is none, or it is no share."""
        number, column = self.number(place), self.column(place[2])
        if number is None or column.n is None or column.unit == "number":
            return None
        return printed_count(percent_of(number, column), column.n)

    def infeasible(self, place: Place) -> bool:
        """Whether the printed number cannot be what its place says: by arithmetic, or by a note."""
        column = self.column(place[2])
        is_count = column.n is not None and column.unit != "number"
        impossible = is_count and self.number(place) is not None and self.count(place) is None
        return impossible or any(self.notes[i].infeasible for i in self.notes_of(place))

    def sought(self, place: Place, profile: str) -> Sought | None:
        """What the place shows of the runs of ``profile``; null where the profile's world has nothing for it."""
        row, source = self.row(place[0]), self.profiles[profile]
        column = self.column(place[2])
        change = source.columns.get(column.key, Measure())
        backbone, defense, variant = (
            source.names.get(name, name) for name in (row.backbone or source.backbone, row.defense, place[1])
        )
        if change is None or backbone is None or defense is None or variant is None or self.is_blank(place):
            return None
        metric = change.metric or column.metric or self.metric
        own = column if change.metric is None else Measure()  # another metric takes nothing of the column's
        return Sought(
            backbone=backbone,
            defense=defense,
            variant=variant,
            bench=change.bench or column.bench,
            metric=metric,
            policy=(change.policy or own.policy or source.policy) if metric in ("asr", "fsr") else None,
            of=change.of or own.of,
            by=change.by or own.by,
            against=_against(change.against or own.against, defense, variant) if metric == "win-rate" else None,
        )

    def by_policy(self, policy: str) -> ReportCard:
        """The same table counted by another policy."""
        profiles = {name: source.model_copy(update={"policy": policy}) for name, source in self.profiles.items()}
        columns = tuple(column.model_copy(update={"policy": None}) for column in self.columns)
        return self.model_copy(update={"profiles": profiles, "columns": columns})

    @model_validator(mode="after")
    def _whole(self) -> ReportCard:
        places = self.places()
        if len(set(places)) != len(places):
            raise ValueError("rows or columns name a defense or a bench twice")
        if self.printed:
            _check_printed(self, places)
        _check_notes(self)
        for row in self.rows:
            if row.group not in self.groups:
                raise ValueError(f"row {row.key}: no group {row.group!r} (there are: {', '.join(self.groups)})")
        for place in places:
            if self.number(place) is None and not self.notes_of(place):
                raise ValueError(f"printed {' / '.join(place)} is null: a note must say why")
        for column in self.columns:
            _check_column(self, column)
        return self


def _check_printed(card: ReportCard, places: list[Place]) -> None:
    printed = {(r, v, c) for r, lines in card.printed.items() for v, line in lines.items() for c in line}
    for wrong, what in ((set(places) - printed, "lacks"), (printed - set(places), "has what is no cell:")):
        if wrong:
            raise ValueError(f"printed {what} {' / '.join(min(wrong))}")


def _check_notes(card: ReportCard) -> None:
    known = ([r.key for r in card.rows], list(card.variants), [c.key for c in card.columns])
    for note in card.notes:
        for strange, names in _strangers(note, known):
            raise ValueError(f"a note speaks of what is no cell: {strange} (there are: {', '.join(names)})")


def _strangers(note: Note, known: tuple[list[str], ...]) -> Iterator[tuple[str, list[str]]]:
    for named, names in zip((note.rows, note.variants, note.columns), known, strict=True):
        yield from ((name, names) for name in named or () if name not in names)


def _check_column(card: ReportCard, column: Column) -> None:
    metric = column.metric or card.metric
    if metric == "mean" and column.of is None:
        raise ValueError(f"column {column.key}: a mean says of which raw column (`of`)")
    if metric == "win-rate" and not (column.of and column.by):
        raise ValueError(f"column {column.key}: a win rate says of which task (`of`) and who judged (`by`)")
    if metric == "rate" and column.of is None:
        raise ValueError(f"column {column.key}: a rate says of which raw column or task (`of`)")


def _speaks_of(note: Note, place: Place) -> bool:
    named = zip((note.rows, note.variants, note.columns), place, strict=True)
    return all(names is None or name in names for names, name in named)


def _against(by_variant: dict[str, str], defense: str, variant: str) -> str:
    return by_variant.get(variant, f"{defense}/base")


def percent_of(number: str, column: Column) -> str:
    """A printed share as a percentage with the same digits: "0.60" of a column of shares is "60"."""
    if column.unit != "share":
        return number
    whole, _, decimals = number.partition(".")
    digits = decimals.ljust(2, "0")
    shifted = str(int(whole + digits[:2]))
    return f"{shifted}.{digits[2:]}" if digits[2:] else shifted


def printed_count(number: str, n: int) -> int | None:
    """The k for which 100 k/n prints as ``number``: rounded, or else cut off; null when there is none.

    Args:
        number: percent with its decimals, as printed.
        n: rows of the benchmark.
    """
    best = fit(number, n)
    return None if best is None else best.k
