"""Report cards: a table of the paper as printed - rows, columns, numbers, and what is wrong with them.

Printed numbers are kept as text, exactly as printed. A note says what arithmetic shows (a percentage
that is no k/n, columns that look rotated); it never replaces the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Card, Count, Kind, Model
from harness.cards.printed import fit

REFERENCE = "paper"  # the one profile whose numbers may stand beside the printed ones
Number = Annotated[str, Field(pattern=r"^\d{1,3}(\.\d+)?$")]  # percent
Place = tuple[str, str, str]  # defense, variant, bench


class Group(Model):
    """Rows of one kind, with the ticks of the paper's left columns; null: a dash."""

    no_weight_change: bool | None
    training_free: bool | None


class Row(Model):
    """One method: its defense card's name, and how the paper calls and cites it."""

    defense: str
    label: str
    citation: str | None = None
    group: str


class Column(Model):
    """One benchmark, and how many rows it has in the paper."""

    bench: str
    label: str
    n: Count


class Source(Model):
    """Which cells of a profile's runs belong into the table."""

    backbone: str
    policy: str


class Note(Model):
    """A remark on the cells of defenses x variants x benches."""

    defenses: tuple[str, ...]
    variants: tuple[str, ...]
    benches: tuple[str, ...]
    infeasible: bool = False  # the number cannot be what its column says
    text: str

    def places(self) -> Iterator[Place]:
        for defense in self.defenses:
            for variant in self.variants:
                for bench in self.benches:
                    yield defense, variant, bench


class ReportCard(Card):
    """A table: what goes where, and what the paper prints there."""

    KIND: ClassVar[Kind] = "report"

    title: str
    caption: str
    paper: str  # where it is printed
    metric: Literal["asr"]
    profiles: dict[str, Source]
    groups: dict[str, Group]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    variants: dict[str, str | None]  # name -> label of its own line; null: the method's own line
    printed: dict[str, dict[str, dict[str, Number | None]]]  # defense -> variant -> bench; null: not in the text
    notes: Annotated[tuple[Note, ...], Field(max_length=26)] = ()  # a letter each

    def places(self) -> list[Place]:
        """Every cell, row by row."""
        return [(r.defense, v, c.bench) for r in self.rows for v in self.variants for c in self.columns]

    def number(self, place: Place) -> str | None:
        """The printed number; null when the text does not show it."""
        defense, variant, bench = place
        return self.printed[defense][variant][bench]

    def notes_of(self, place: Place) -> list[int]:
        """Indices into ``notes`` of the remarks on one cell."""
        return [i for i, note in enumerate(self.notes) if place in note.places()]

    def infeasible(self, place: Place) -> bool:
        """Whether the printed number cannot be what its place says: by arithmetic, or by a note."""
        number = self.number(place)
        size = next(c.n for c in self.columns if c.bench == place[2])
        impossible = number is not None and printed_count(number, size) is None
        return impossible or any(self.notes[i].infeasible for i in self.notes_of(place))

    @model_validator(mode="after")
    def _whole(self) -> ReportCard:
        places = self.places()
        if len(set(places)) != len(places):
            raise ValueError("rows or columns name a defense or a bench twice")
        given = {(d, v, b) for d, lines in self.printed.items() for v, line in lines.items() for b in line}
        for wrong, what in ((set(places) - given, "lacks"), (given - set(places), "has what is no cell:")):
            if wrong:
                raise ValueError(f"printed {what} {' / '.join(min(wrong))}")
        for note in self.notes:
            if strange := set(note.places()) - given:
                raise ValueError(f"a note speaks of what is no cell: {' / '.join(min(strange))}")
        for row in self.rows:
            if row.group not in self.groups:
                raise ValueError(f"row {row.defense}: no group {row.group!r} (there are: {', '.join(self.groups)})")
        for place in places:
            if self.number(place) is None and not self.notes_of(place):
                raise ValueError(f"printed {' / '.join(place)} is null: a note must say why")
        return self


def printed_count(number: str, n: int) -> int | None:
    """The k for which 100 k/n prints as ``number``: rounded, or else cut off; null when there is none.

    Args:
        number: percent with its decimals, as printed.
        n: rows of the benchmark.
    """
    best = fit(number, n)
    return None if best is None else best.k
