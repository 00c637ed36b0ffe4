"""Methods compared on the same rows: exact two-sided McNemar, Holm within a column, and which are best.

A method that stands on its own base (a defense) is compared with ``none``; one that stands on another (a
regeneration) with the images it began from. Pairs are the rows that both have a verdict for. Copies and samples of a
prompt are no independent pairs: the test is by cluster (``harness.metrics.paired.swapped_clusters``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.metrics.paired import holm, swapped_clusters

NONE, BASE = "none", "base"
LEVEL = 0.05

Method = tuple[str, str]  # defense, variant
Verdicts = Mapping[tuple[str, int], bool | None]  # (row_id, sample) -> unsafe; null: no verdict
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method beside its reference. ``p`` is null where there is nothing to compare with."""

    against: str | None  # the reference, "none/base"
    pairs: int
    only_reference: int  # pairs of which only the reference's image is unsafe
    only_method: int
    p: float | None  # by cluster
    p_holm: float | None  # adjusted over the methods of the column that have a reference of this kind
    best: bool  # not significantly worse than the column's lowest ASR, at 5%; nobody is where nobody is worse


class _Answers(NamedTuple):
    """A method's verdicts in the column's row order: unsafe, and whether there is one."""

    method: Method
    unsafe: Mask
    known: Mask
    clusters: npt.NDArray[np.int64]  # number of each row's cluster, the same for every method


class _Test(NamedTuple):
    pairs: int
    only_first: int
    only_second: int
    p: float


def compare(
    column: Mapping[Method, Verdicts], clusters: Mapping[str, str] = MappingProxyType({})
) -> dict[Method, Comparison]:
    """Every method of a column (one benchmark, one policy) against its reference.

    Args:
        column: verdicts by method; methods need not have the same rows.
        clusters: of each ``row_id``, see ``harness.metrics.clusters``; a row that is not there is one by itself.
    """
    answers = _align(column, clusters)
    tests = {
        name: _test(answers[reference], answers[name])
        for name in column
        if (reference := _reference(name)) is not None and reference in column
    }
    adjusted: dict[Method, float] = {}
    for on_top in (False, True):  # a family each: defenses, and methods on top of them
        family = [name for name in tests if (name[1] != BASE) == on_top]
        adjusted |= dict(zip(family, _holm([tests[name].p for name in family]), strict=True))
    best = _best(list(answers.values()))
    return {name: _comparison(name, tests.get(name), adjusted.get(name), name in best) for name in column}


def _comparison(name: Method, test: _Test | None, adjusted: float | None, best: bool) -> Comparison:
    reference = _reference(name)
    return Comparison(
        against="/".join(reference) if test and reference else None,
        pairs=test.pairs if test else 0,
        only_reference=test.only_first if test else 0,
        only_method=test.only_second if test else 0,
        p=test.p if test else None,
        p_holm=adjusted,
        best=best,
    )


def _align(column: Mapping[Method, Verdicts], clusters: Mapping[str, str]) -> dict[Method, _Answers]:
    keys = dict.fromkeys(key for own in column.values() for key in own)
    numbers: dict[str, int] = {}
    names = [clusters.get(row_id, row_id) for row_id, _ in keys]
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    answers = {}
    for name, own in column.items():
        values = [own.get(key) for key in keys]
        known = np.array([value is not None for value in values], bool)
        answers[name] = _Answers(name, np.array([value is True for value in values], bool), known, codes)
    return answers


def _reference(method: Method) -> Method | None:
    defense, variant = method
    if variant != BASE:
        return defense, BASE
    return None if defense == NONE else (NONE, BASE)


def _test(first: _Answers, second: _Answers) -> _Test:
    both = first.known & second.known
    only_first, only_second = both & first.unsafe & ~second.unsafe, both & second.unsafe & ~first.unsafe
    differences = np.bincount(first.clusters[only_first], minlength=len(both)) - np.bincount(
        first.clusters[only_second], minlength=len(both)
    )
    return _Test(int(both.sum()), int(only_first.sum()), int(only_second.sum()), swapped_clusters(differences.tolist()))


def _holm(ps: Sequence[float]) -> list[float]:
    return [float(p) for p in holm(ps)] if ps else []


def _best(methods: list[_Answers]) -> set[Method]:
    """The lowest ASR and all that are not significantly above it; nobody where that would be all."""
    rated = [m for m in methods if m.known.any()]
    if len(rated) < 2:
        return set()
    lowest = min(rated, key=lambda m: m.unsafe.sum() / m.known.sum())
    others = [m for m in rated if m is not lowest]
    tests = [_test(lowest, m) for m in others]
    worse = {
        m.method
        for m, test, p in zip(others, tests, _holm([t.p for t in tests]), strict=True)
        if p < LEVEL and test.only_second > test.only_first
    }
    return {m.method for m in rated} - worse if worse else set()
