"""A printed table of percentages held against the sizes of its columns: which cannot be, and why.

A rate over n images is a multiple of 1 / n, so most printed percentages fit one n and not another (the GRIM test of
Brown and Heathers 2017, Soc. Psychol. Personal. Sci. 8:363, for proportions). Every explanation comes with the chance
that it would fit numbers picked at random, times the number of explanations of its kind that were tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from math import prod
from typing import Literal, NamedTuple

from harness.cards.printed import chance, closest, decimals, fit, rounds, sizes

Kind = Literal["exact", "cut off", "pooled", "infeasible", "not printed"]
LIKELY = 0.05  # an explanation that fits random numbers more often than this explains nothing
RUNS = (2, 3, 4, 5)  # that a number may be pooled over
_MOVED = 5  # cells of a row that a rotation may move
_SIZES = 1000  # that a column with the wrong n may be of


class PrintedTable(NamedTuple):
    """A table as printed."""

    name: str
    sizes: Mapping[str, int]  # n by column
    rows: Mapping[str, Mapping[str, str | None]]  # number by row and column; null: not in the text


class Reading(NamedTuple):
    """What arithmetic says of one printed number."""

    row: str
    column: str
    number: str | None
    n: int
    kind: Kind
    k: int | None  # of n, or of n times the runs pooled
    runs: int  # 1, or of how many it is the mean
    chance: float  # that a random number with as many decimals fits n
    others: tuple[str, ...]  # columns whose n an infeasible number fits


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong, or worth a note, and how far it could be chance."""

    kind: Literal["moved", "other n", "pooled", "infeasible", "exchanged between tables", "differs between tables"]
    table: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    text: str
    chance: float | None = None  # that numbers picked at random look so; null: nothing was picked out
    holds: tuple[str, ...] = ()  # of moved numbers: the column that each column's number belongs to
    runs: int = 1  # of pooled numbers

    @property
    def alarm(self) -> bool:
        """Whether a number is wrong or in the wrong place; a mean of several runs is neither."""
        return self.kind != "pooled"


class Audit(NamedTuple):
    """All readings of a table, row by row, and what was found."""

    table: str
    readings: tuple[Reading, ...]
    findings: tuple[Finding, ...]

    def counts(self) -> dict[Kind, int]:
        """How many numbers are of each kind."""
        kinds = [reading.kind for reading in self.readings]
        return {kind: kinds.count(kind) for kind in Kind.__args__}  # type: ignore[attr-defined]


def audit(table: PrintedTable, others: Sequence[PrintedTable] = ()) -> Audit:
    """Reads every number and looks for what explains those that cannot be.

    In this order, each over what is not yet explained: numbers of a row that stand in each other's columns, a column
    printed over another n, rows pooled over several runs. Then rows that other tables print differently.

    Args:
        table: as printed.
        others: tables with rows of the same names, over the same columns.

    Raises:
        ValueError: a column without images, or a row with a column that has no n.
    """
    readings = _read(table)
    open_ = {(r.row, r.column) for r in readings.values() if r.kind == "infeasible"}
    findings = []
    for look in (_moved, _other_size, _pooled):
        for finding in look(table, readings, open_):
            findings.append(finding)
            places = {(row, column) for row in finding.rows for column in finding.columns}
            open_ -= places
            if finding.kind == "pooled":
                readings |= {place: _as_mean(readings[place], finding.runs) for place in places}
    findings += [_infeasible(table, readings[place]) for place in readings if place in open_]
    findings += between(table, others)
    return Audit(table.name, tuple(readings.values()), tuple(findings))


_Place = tuple[str, str]  # row, column
_Readings = dict[_Place, Reading]


def _read(table: PrintedTable) -> _Readings:
    if empty := [name for name, n in table.sizes.items() if n < 1]:
        raise ValueError(f"column {empty[0]!r} of {table.name} has n = {table.sizes[empty[0]]}")
    readings = {}
    for row, numbers in table.rows.items():
        for column, number in numbers.items():
            if column not in table.sizes:
                raise ValueError(f"column {column!r} of {table.name} has no n")
            readings[row, column] = _reading(table, row, column, number)
    return readings


def _reading(table: PrintedTable, row: str, column: str, number: str | None) -> Reading:
    n = table.sizes[column]
    if number is None:
        return Reading(row, column, None, n, "not printed", None, 1, 1.0, ())
    own = fit(number, n)
    others = [c for c, size in table.sizes.items() if size != n and rounds(number, size)] if own is None else []
    kind: Kind = "infeasible" if own is None else "cut off" if own.cut else "exact"
    return Reading(row, column, number, n, kind, own and own.k, 1, chance(decimals(number), n), tuple(others))


def _moved(table: PrintedTable, readings: _Readings, open_: set[_Place]) -> Iterator[Finding]:
    """Numbers of a row in each other's columns; rows that were moved alike are one finding."""
    alike: dict[_Move, dict[str, float]] = defaultdict(dict)
    for row in table.rows:
        for move, chance_of_row in _moves(table, readings, open_, row):
            alike[move][row] = chance_of_row
    wrong = {row: {column for at, column in open_ if at == row} for row in table.rows}

    def rank(move: _Move) -> tuple[int, int, float]:
        """What explains most of its rows' wrong numbers comes first, then what moves least, then the less likely."""
        left = max(len(wrong[row] - {column for column, _ in move}) for row in alike[move])
        return left, len(move), prod(alike[move].values())

    while likely := [move for move, by_row in alike.items() if by_row and prod(by_row.values()) <= LIKELY]:
        move = min(likely, key=rank)
        rows, total = tuple(alike[move]), prod(alike[move].values())
        yield _moved_finding(table, readings, move, rows, total)
        alike = {m: {row: p for row, p in by_row.items() if row not in rows} for m, by_row in alike.items()}


_Move = tuple[tuple[str, str], ...]  # (where a number is printed, where it belongs), in the table's order


def _moves(table: PrintedTable, readings: _Readings, open_: set[_Place], row: str) -> Iterator[tuple[_Move, float]]:
    """Ways to move numbers of a row so that all moved ones fit, at most one of which fits already; with chances."""
    printed = [c for c in table.rows[row] if readings[row, c].number is not None]
    wrong = {c for c in printed if (row, c) in open_}
    if not wrong:
        return
    targets = {a: [b for b in printed if b != a and _fits(readings[row, a], table.sizes[b])] for a in printed}
    for size in range(2, _MOVED + 1):
        subsets = [s for s in combinations(printed, size) if len(wrong.intersection(s)) >= size - 1]
        tried = len(subsets) * _DERANGEMENTS[size]
        for subset in subsets:
            for move in _rearranged(subset, targets):
                by_chance = prod(_by_chance(readings[row, a], table.sizes[b]) for a, b in move)
                yield move, min(1.0, by_chance * tried * (size - 1))  # pays for smaller ones tried before


_DERANGEMENTS = (1, 0, 1, 2, 9, 44)  # ways to move each of so many numbers


def _rearranged(columns: Sequence[str], targets: Mapping[str, Sequence[str]]) -> Iterator[_Move]:
    """All ways to give each column's number to another of the columns, one to each, where it fits."""
    for places in product(*([b for b in targets[a] if b in columns] for a in columns)):
        if len(set(places)) == len(places):
            yield tuple(zip(columns, places, strict=True))


def _fits(reading: Reading, n: int) -> bool:
    return rounds(str(reading.number), n) is not None


def _by_chance(reading: Reading, n: int) -> float:
    """That a number that does not belong into a column with n images fits it all the same."""
    number = str(reading.number)
    if float(number) in (0.0, 100.0):
        return 1.0
    places = decimals(number)
    if reading.kind == "infeasible":
        return chance(places, n)
    return max(chance(places, n), _shared(reading.n, n, places))  # it fits where it stands


@cache
def _shared(own: int, n: int, places: int) -> float:
    """Share of the percentages of ``own`` images that are those of n images, too."""
    return sum(rounds(f"{100 * k / own:.{places}f}", n) is not None for k in range(own + 1)) / (own + 1)


def _moved_finding(
    table: PrintedTable, readings: _Readings, move: _Move, rows: tuple[str, ...], total: float
) -> Finding:
    columns, holds = zip(*move, strict=True)
    read = "; ".join(
        f"{row}: " + ", ".join(f"{readings[row, a].number} = {rounds(str(readings[row, a].number), table.sizes[b])}"
                               for a, b in move)
        for row in rows
    )  # fmt: skip
    how = "exchanged" if len(move) == 2 else "rotated" if _is_cycle(dict(move)) else "mixed up"
    where = ", ".join(f"{b}'s stand under {a}" for a, b in move)
    return Finding(
        kind="moved", table=table.name, rows=rows, columns=columns, holds=holds, chance=total,
        text=f"numbers look {how}: {where} ({read})",
    )  # fmt: skip


def _is_cycle(move: Mapping[str, str]) -> bool:
    """Whether the numbers were passed round in one ring."""
    start = next(iter(move))
    place, steps = move[start], 1
    while place != start:
        place, steps = move[place], steps + 1
    return steps == len(move)


def _other_size(table: PrintedTable, readings: _Readings, open_: set[_Place]) -> Iterator[Finding]:
    """Columns of which most numbers do not fit n and all fit another: a column's of the table, or the smallest."""
    for column, n in table.sizes.items():
        there = [r for r in readings.values() if r.column == column and r.number is not None]
        wrong = [r for r in there if (r.row, column) in open_]
        if len(wrong) < 2 or 2 * len(wrong) < len(there):
            continue
        numbers = list(dict.fromkeys(str(r.number) for r in there))
        named = {size: other for other, size in table.sizes.items() if size != n}
        fitting = [size for size in named if all(rounds(number, size) for number in numbers)]
        tried = len(named)
        if not fitting:
            fitting = [size for size in sizes(numbers, _SIZES) if size != n][:1]
            tried = fitting[0] if fitting else 0
        for size in fitting[:1]:
            telling = [number for number in numbers if float(number) not in (0.0, 100.0)]
            by_chance = min(1.0, tried * prod(chance(decimals(number), size) for number in telling))
            if by_chance <= LIKELY:
                of = f" (as {named[size]} has)" if size in named else ""
                yield Finding(
                    kind="other n", table=table.name, rows=tuple(r.row for r in there), columns=(column,),
                    text=f"{len(wrong)} of {len(there)} numbers are no shares of {n}; all are of {size}{of}",
                    chance=by_chance,
                )  # fmt: skip


def _pooled(table: PrintedTable, readings: _Readings, open_: set[_Place]) -> Iterator[Finding]:
    """Rows whose remaining numbers are all means of as many runs; few suffice where another row shows it plainly."""
    by_row: dict[str, list[tuple[float, int, list[Reading]]]] = defaultdict(list)
    for row in table.rows:
        wrong = [r for r in readings.values() if r.row == row and (row, r.column) in open_]
        for runs in RUNS:
            if wrong and all(rounds(str(r.number), runs * r.n) for r in wrong):
                by_chance = prod(chance(decimals(str(r.number)), runs * r.n) for r in wrong) * (runs - 1)
                by_row[row].append((min(1.0, by_chance), runs, wrong))
    plain = {runs for ways in by_row.values() for p, runs, _ in ways[:1] if p <= LIKELY}
    for row, ways in by_row.items():
        for by_chance, runs, wrong in ways:
            if runs in plain:
                read = ", ".join(f"{r.number} = {rounds(str(r.number), runs * r.n)}" for r in wrong)
                yield Finding(
                    kind="pooled", table=table.name, rows=(row,), columns=tuple(r.column for r in wrong),
                    text=f"look like means of {runs} runs: {read}", chance=by_chance, runs=runs,
                )  # fmt: skip
                break


def _as_mean(reading: Reading, runs: int) -> Reading:
    """The reading of a number that is the mean of several runs."""
    rounded = rounds(str(reading.number), runs * reading.n)
    return reading._replace(kind="pooled", k=rounded and rounded.k, runs=runs)


def _infeasible(table: PrintedTable, reading: Reading) -> Finding:
    number = str(reading.number)
    text = f"{number} is no share of {reading.n}; the nearest is {closest(number, reading.n)}"
    fits = [f"{c} (n = {table.sizes[c]}: so do {100 * chance(decimals(number), table.sizes[c]):.0f}% of such numbers)"
            for c in reading.others]  # fmt: skip
    if fits:
        text += f"; it would fit {', '.join(fits)}"
    return Finding(kind="infeasible", table=table.name, rows=(reading.row,), columns=(reading.column,), text=text)


def between(table: PrintedTable, others: Sequence[PrintedTable]) -> list[Finding]:
    """Rows that another table prints with other numbers: the same ones in other columns, or different ones.

    Args:
        table: as printed.
        others: tables to hold beside it; rows and columns of the same names are the same.
    """
    findings = []
    for row, numbers in table.rows.items():
        ways: dict[tuple[tuple[str, str, str], ...], list[str]] = defaultdict(list)
        agree = []
        for other in others:
            theirs = other.rows.get(row, {})
            shared = [c for c in numbers if numbers[c] is not None and theirs.get(c) is not None]
            unlike = [(c, str(numbers[c]), str(theirs[c])) for c in shared if not _same(numbers[c], theirs[c])]
            if unlike:
                ways[tuple(unlike)].append(other.name)
            elif shared:
                agree.append(other.name)
        findings += [_between_finding(table, row, unlike, names, agree) for unlike, names in ways.items()]
    return findings


def _between_finding(
    table: PrintedTable, row: str, unlike: Sequence[tuple[str, str, str]], names: Sequence[str], agree: Sequence[str]
) -> Finding:
    columns = tuple(column for column, _, _ in unlike)
    own, theirs = [a for _, a, _ in unlike], [b for _, _, b in unlike]
    exchanged = sorted(map(float, own)) == sorted(map(float, theirs))
    holds = tuple(columns[theirs.index(a)] for a in own) if exchanged and len(set(theirs)) == len(theirs) else ()
    text = f"{', '.join(columns)}: {' / '.join(own)} here, {' / '.join(theirs)} in {', '.join(names)}"
    text += f" ({', '.join(agree)}: as here)" if agree else ""
    return Finding(
        kind="exchanged between tables" if exchanged else "differs between tables",
        table=table.name, rows=(row,), columns=columns, holds=holds, text=text,
    )  # fmt: skip


def _same(first: str | None, second: str | None) -> bool:
    """Whether two printed numbers agree to the decimals that both have."""
    places = min(decimals(str(first)), decimals(str(second)))
    gap = abs(Fraction(str(first)) - Fraction(str(second)))
    return gap == 0 if decimals(str(first)) == decimals(str(second)) else gap <= Fraction(1, 2 * 10**places)
