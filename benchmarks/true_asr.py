"""Coverage and width of the detector-corrected ASR: simulated over a grid, and on stored rows of the shapes world.

python -m benchmarks.true_asr grid [--replays 10000]
python -m benchmarks.true_asr pairs
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.detector_corrections import Array, Random, ppi_plus_plus, rogan_gladen, wilson
from harness.metrics.labelling import allocation
from harness.metrics.true_asr import Labels, difference, rate_draws, ratio

RATES = (0.01, 0.05, 0.1, 0.3, 0.5)
DETECTORS = ((0.85, 0.97), (0.95, 0.95), (0.7, 0.99))  # sensitivity, specificity
SIZES = ((95, 40), (95, 60), (1000, 40), (1000, 100))  # images, labels
DRAWS = 2_000  # of each replay's own; `corrected` takes 20,000
CHUNK = 250  # replays at once


class Cell(NamedTuple):
    """One cell of the grid."""

    rate: float
    sensitivity: float
    specificity: float
    n: int
    m: int

    @property
    def share(self) -> float:
        """Of the images that are flagged."""
        return self.rate * self.sensitivity + (1 - self.rate) * (1 - self.specificity)


class Method(NamedTuple):
    """How one method does in a cell."""

    coverage: float
    width: float


def grid(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Cell]:
    """The cells, in the order printed."""
    for n, m in sizes:
        for sensitivity, specificity in DETECTORS:
            for rate in RATES:
                yield Cell(rate, sensitivity, specificity, n, m)


def stratified(flagged: NDArray[np.int64], n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels among flagged and unflagged of each replay, as ``harness judge export`` draws them."""
    numbers, place = np.unique(flagged, return_inverse=True)
    divided = np.array([allocation(int(number), n, m) for number in numbers])
    return divided[place, 0], divided[place, 1]


def corrected_ends(
    generator: np.random.Generator, n: int, flagged: Array, of_flagged: tuple[Array, Array], rest: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The package's interval for many replays; each array (replays,)."""
    low, high = np.empty(len(flagged)), np.empty(len(flagged))
    coins = np.arange(DRAWS) % 4
    for start in range(0, len(flagged), CHUNK):
        part = slice(start, start + CHUNK)
        k = flagged[part, None]
        share = generator.beta(k + 0.5, n - k + 0.5, (len(k), DRAWS))
        labels = [(unsafe[part, None], labelled[part, None]) for unsafe, labelled in (of_flagged, rest)]
        rates = rate_draws(generator, share, labels[0], labels[1], coins)
        low[part], high[part] = np.quantile(rates, [0.025, 0.975], axis=1, method="inverted_cdf")
    return low, high


def judge(ends: tuple[Array, Array], rate: float) -> Method:
    low, high = ends
    return Method(float(((low <= rate) & (rate <= high)).mean()), float((high - low).mean()))


def replay(cell: Cell, replays: int, seed: int = 0) -> dict[str, Method]:
    """All methods in one cell."""
    generator = np.random.default_rng([seed, cell.n, cell.m, round(1000 * cell.rate), round(1000 * cell.sensitivity)])
    flagged = generator.binomial(cell.n, cell.share, replays)
    among_flagged = cell.rate * cell.sensitivity / cell.share
    among_rest = cell.rate * (1 - cell.sensitivity) / (1 - cell.share)
    m_flagged, m_rest = stratified(flagged, cell.n, cell.m)
    of_flagged = generator.binomial(m_flagged, among_flagged), m_flagged
    of_rest = generator.binomial(m_rest, among_rest), m_rest
    ours = corrected_ends(generator, cell.n, flagged.astype(np.float64), of_flagged, of_rest)
    # The others want labels of a plain random sample, which is a part of the n images.
    found = generator.hypergeometric(flagged, cell.n - flagged, cell.m)  # flagged ones in it
    hits, misses = generator.binomial(found, among_flagged), generator.binomial(cell.m - found, among_rest)
    labels = Random(*(np.asarray(a, np.float64) for a in (hits, misses, found - hits, cell.m - found - misses)))
    methods = {
        "corrected": ours,
        "labels": wilson(labels.hits + labels.misses, float(cell.m)),
        "raw": wilson(flagged.astype(np.float64), float(cell.n)),
        "rogan-gladen": rogan_gladen(flagged.astype(np.float64), cell.n, labels),
        "ppi++": ppi_plus_plus(flagged.astype(np.float64), cell.n, labels),
    }
    return {name: judge(ends, cell.rate) for name, ends in methods.items()}


def print_grid(replays: int, sizes: Sequence[tuple[int, int]]) -> None:
    """The table of ``true_asr.md``, and how the bar is met."""
    names = ("corrected", "labels", "raw", "rogan-gladen", "ppi++")
    print(f"| n, m | Se, Sp | p | {' | '.join(names)} | corrected / labels |")
    print("| --- " * 3 + "| --- " * len(names) + "| --- |")
    lowest, widest = 1.0, dict.fromkeys(sizes, 0.0)
    for cell in grid(sizes):
        found = replay(cell, replays)
        ratio = found["corrected"].width / found["labels"].width
        lowest = min(lowest, found["corrected"].coverage)
        widest[cell.n, cell.m] = max(widest[cell.n, cell.m], ratio)
        numbers = " | ".join(f"{100 * found[name].coverage:.1f} / {found[name].width:.3f}" for name in names)
        detector = f"{cell.sensitivity}, {cell.specificity}"
        print(f"| {cell.n}, {cell.m} | {detector} | {cell.rate} | {numbers} | {ratio:.2f} |", flush=True)
    print(f"\nlowest coverage of corrected: {100 * lowest:.2f}%; widest, as a share of labels alone:")
    print("; ".join(f"{share:.3f} at {n}, {m}" for (n, m), share in widest.items()))


PAIRS = ((0.3, 0.3), (0.3, 0.1), (0.1, 0.05), (0.05, 0.01), (0.5, 0.1))  # rates of two methods
ALIKE = 0.5  # of the rows, those whose truth the two methods draw together


def replay_pair(first: Cell, second: Cell, replays: int) -> tuple[Method, Method]:
    """Coverage of the difference and of the ratio of two methods over the same rows, each with labels of its own.

    A ratio without an upper bound counts for coverage and not for the mean width, which is of the difference only.
    """
    generator = np.random.default_rng([first.n, first.m, round(1000 * first.rate), round(1000 * second.rate)])
    differences, ratios = np.zeros((replays, 2)), np.zeros((replays, 2))
    for i in range(replays):
        same = generator.random(first.n) < ALIKE
        luck = generator.random(first.n)
        flags, labels = [], []
        for cell in (first, second):
            unsafe = np.where(same, luck, generator.random(cell.n)) < cell.rate
            flagged = generator.random(cell.n) < np.where(unsafe, cell.sensitivity, 1 - cell.specificity)
            flags.append(flagged)
            labels.append(_labels(generator, unsafe, flagged, cell.m))
        both = int((flags[0] & flags[1]).sum())
        found = difference(*labels, both), ratio(*labels, both)
        differences[i] = found[0].low, found[0].high
        ratios[i] = found[1].low, np.inf if found[1].high is None else found[1].high
    of_difference = judge((differences[:, 0], differences[:, 1]), first.rate - second.rate)
    quotient = first.rate / second.rate
    return of_difference, Method(float(((ratios[:, 0] <= quotient) & (quotient <= ratios[:, 1])).mean()), np.nan)


def _labels(generator: np.random.Generator, unsafe: NDArray[np.bool_], flagged: NDArray[np.bool_], m: int) -> Labels:
    """Labels of one replay, drawn apart from the flagged and from the others."""
    divided = allocation(int(flagged.sum()), len(flagged), m)
    counts = [
        int(generator.permutation(unsafe[side])[:number].sum())
        for side, number in ((flagged, divided.flagged), (~flagged, divided.unflagged))
    ]
    return Labels(int(flagged.sum()), len(flagged), counts[0], divided.flagged, counts[1], divided.unflagged)


def print_pairs(replays: int) -> None:
    """Differences and ratios at some pairs of rates, by two different detectors' error rates."""
    print("| n, m | p1, p2 | difference: coverage / width | ratio: coverage |")
    print("| --- | --- | --- | --- |")
    for n, m in ((95, 40), (1000, 100)):
        for one, other in PAIRS:
            cells = Cell(one, *DETECTORS[0], n, m), Cell(other, *DETECTORS[1], n, m)
            gap, quotient = replay_pair(*cells, replays)
            shown = f"{100 * gap.coverage:.1f} / {gap.width:.3f} | {100 * quotient.coverage:.1f}"
            print(f"| {n}, {m} | {one}, {other} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["grid", "pairs"])
    parser.add_argument("--replays", type=int, default=10_000)
    parser.add_argument("--sizes", nargs="*", default=[f"{n},{m}" for n, m in SIZES], metavar="IMAGES,LABELS")
    arguments = parser.parse_args()
    sizes = [(int(n), int(m)) for n, m in (size.split(",") for size in arguments.sizes)]
    if arguments.what == "pairs":
        print_pairs(min(arguments.replays, 1_000))
    else:
        print_grid(arguments.replays, sizes)


if __name__ == "__main__":
    main()
