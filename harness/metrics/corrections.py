"""Corrected rates of a run: per benchmark and method, from the labels that people gave, kept beside the run's answers.

Error rates do not carry over between kinds of images, so every benchmark and method is corrected by labels of its own,
and only under the policy that they were drawn by. Without labels a rate is uncorrected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics.intervals import wilson
from harness.metrics.labelling import Pooling, pooling
from harness.metrics.true_asr import Corrected, Labels, corrected, difference, ratio

FILES = "judges/unsafe_people_*.json"  # below a run's folder, written by `harness judge import`
Place = tuple[str, str, str]  # benchmark, DEFENSE/VARIANT, policy


@dataclass(frozen=True, kw_only=True)
class Group:
    """What a policy says of one method's images over one benchmark, before anyone has labelled any."""

    bench: str
    method: str  # DEFENSE/VARIANT
    concept: str
    policy: str
    flagged: int
    n: int  # with a verdict
    prompts: int  # that they are of
    both_flagged: Mapping[str, int]  # by another method with verdicts for the same rows: rows that both flag

    @property
    def place(self) -> Place:
        return self.bench, self.method, self.policy


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A method's rate as the policy has it, and as the labels correct it."""

    group: Group
    labels: Labels
    lost: int  # drawn, and without an answer that most agree on: taken as lost at random
    bands: tuple[tuple[int, ...], ...]  # by score, lowest first: unsafe, of; unflagged unsafe, of
    rate: Corrected | None  # null: see why
    why: str | None

    @property
    def raw(self) -> tuple[float, float, float]:
        """The uncorrected rate with Wilson's interval."""
        low, high = wilson(self.group.flagged, self.group.n)
        return self.group.flagged / self.group.n, low, high

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the raw rate; ``from_json`` reads it back."""
        rate = self.rate and self.rate._asdict()
        return {**asdict(self), "labels": self.labels._asdict(), "rate": rate, "raw": list(self.raw)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Correction:
        """What ``to_json`` wrote.

        Raises:
            TypeError: a key is missing or new.
        """
        kept = {key: value for key, value in data.items() if key != "raw"}
        return cls(**{
            **kept, "group": Group(**kept["group"]), "labels": Labels(**kept["labels"]),
            "bands": tuple(map(tuple, kept["bands"])), "rate": kept["rate"] and Corrected(**kept["rate"]),
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two methods' corrected rates: the second less the first, and over it."""

    bench: str
    first: str
    second: str
    difference: Corrected
    ratio: Corrected


def correct(group: Group, answers: Iterable[tuple[bool, int, bool | None]], bands: int) -> Correction:
    """A method's correction from its labelled images.

    Args:
        group: what the policy says of all of them.
        answers: of each image drawn: whether it was flagged, its band of scores, whether it is unsafe (null: no
            answer, or as many for as against).
        bands: how many bands there are.
    """
    counts = [[0, 0, 0, 0] for _ in range(bands)]
    lost = 0
    for flagged, band, unsafe in answers:
        if unsafe is None:
            lost += 1
            continue
        place = 0 if flagged else 2
        counts[band][place] += unsafe
        counts[band][place + 1] += 1
    a, b, c, d = (sum(band[i] for band in counts) for i in range(4))
    labels = Labels(group.flagged, group.n, a, b, c, d, group.prompts)
    try:
        rate, why = corrected(labels), None
    except ValueError as error:
        rate, why = None, str(error)
    return Correction(group=group, labels=labels, lost=lost, bands=tuple(map(tuple, counts)), rate=rate, why=why)


def compared(corrections: Sequence[Correction]) -> list[Compared]:
    """Within a benchmark, every method with what it stands on: a regeneration with its base, a defense with none."""
    by_place = {(c.group.bench, c.group.method): c for c in corrections if c.rate is not None}
    pairs = []
    for (bench, method), second in by_place.items():
        defense, _, variant = method.partition("/")
        reference = f"{defense}/base" if variant != "base" else "none/base"
        first = by_place.get((bench, reference))
        if first is None or reference == method:
            continue
        both = second.group.both_flagged.get(reference)
        rates = [of(second.labels, first.labels, both) for of in (difference, ratio)]
        pairs.append(Compared(bench=bench, first=reference, second=method, difference=rates[0], ratio=rates[1]))
    return pairs


def poolable(corrections: Sequence[Correction]) -> dict[str, Pooling]:
    """By benchmark, the test that all its methods' labels could be taken together; only where two have labels."""
    tests = {}
    for bench in dict.fromkeys(c.group.bench for c in corrections):
        labels = [c.labels for c in corrections if c.group.bench == bench and c.rate is not None]
        if len(labels) > 1:
            tests[bench] = pooling(labels)
    return tests


def both_flagged(flags: Mapping[str, Mapping[tuple[str, int], bool]]) -> dict[str, dict[str, int]]:
    """For each method the number of rows that it and another flag, where both have verdicts for the same rows.

    Args:
        flags: by method and row, whether the policy flags it; rows without a verdict left out.
    """
    counts: dict[str, dict[str, int]] = {method: {} for method in flags}
    for one, other in combinations(flags, 2):
        if flags[one].keys() == flags[other].keys():
            both = sum(flagged and flags[other][row] for row, flagged in flags[one].items())
            counts[one][other] = counts[other][one] = both
    return counts


def of_run(run: Path) -> dict[Place, Correction]:
    """All corrections that a run's folder holds, the newest form first to count.

    Raises:
        UserError: a file is not what an import of labels writes.
    """
    by_place: dict[Place, Correction] = {}
    for path in sorted(run.glob(FILES), key=lambda path: path.stat().st_mtime):
        try:
            corrections = [Correction.from_json(entry) for entry in json.loads(path.read_text())["corrected"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not the labels of a run ({error}); import them again") from None
        by_place |= {correction.group.place: correction for correction in corrections}
    return by_place


def as_json(corrections: Sequence[Correction]) -> dict[str, Any]:
    """What the answers' file says of them; ``of_run`` reads the rates."""
    return {
        "corrected": [correction.to_json() for correction in corrections],
        "compared": [
            {**vars(pair), "difference": pair.difference._asdict(), "ratio": pair.ratio._asdict()}
            for pair in compared(corrections)
        ],
        "pooling": {bench: test._asdict() for bench, test in poolable(corrections).items()},
    }
