"""How often a 95% interval covers, and how often a test at 5% errs, where rows are copies of one another.

MMA-Diffusion's 1,000 rows hold 812 different prompts. However the other 188 are spread, copies of an image are one
observation. Simulated with the functions that a run's cells come from: rates of a method (interval), and two methods
that are alike (test).

    python -m benchmarks.clusters [--trials 4000]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.metrics.bootstrap import shares
from harness.metrics.intervals import wilson
from harness.metrics.paired import mcnemar_exact, swapped_clusters

SIZES = {
    "1,000 single": [1] * 1000,
    "188 pairs, 624 single": [2] * 188 + [1] * 624,
    "47 of five, 765 single": [5] * 47 + [1] * 765,
    "47 of five": [5] * 47,
    "100 of ten": [10] * 100,
}
RATES = (0.02, 0.1, 0.33, 0.7)
DISCORDANT = 0.3  # share of prompts on which two methods that are alike differ


def coverage(sizes: Sequence[int], rate: float, trials: int, seed: int) -> tuple[float, float]:
    """Shares of trials whose interval holds the true rate: Wilson's over all rows, and the one of a cell."""
    rng = np.random.default_rng(seed)
    judged = np.repeat(np.asarray(sizes, np.int64)[:, None], trials, axis=1)
    unsafe = judged * (rng.random(judged.shape) < rate)
    n = int(judged[:, 0].sum())
    plain = [wilson(int(k), n) for k in unsafe.sum(0)]
    found = shares(unsafe, judged)
    covers = [low <= rate <= high for low, high in plain]
    clustered = [one.low is not None and one.high is not None and one.low <= rate <= one.high for one in found]
    return float(np.mean(covers)), float(np.mean(clustered))


def errors(sizes: Sequence[int], trials: int, seed: int) -> tuple[float, float]:
    """Shares of trials in which two methods that are alike differ at 5%: McNemar's over all rows, and by cluster."""
    rng = np.random.default_rng(seed)
    whole: NDArray[np.int64] = np.asarray(sizes, np.int64)
    plain = by_cluster = 0
    for _ in range(trials):
        differs = rng.random(len(whole)) < DISCORDANT
        signs = whole * differs * rng.choice((-1, 1), len(whole))
        plain += mcnemar_exact(int(signs[signs > 0].sum()), int(-signs[signs < 0].sum())) < 0.05
        by_cluster += swapped_clusters(signs.tolist()) < 0.05
    return plain / trials, by_cluster / trials


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    print("| copies | rate | Wilson over rows covers | a cell's interval covers |\n| --- | --- | --- | --- |")
    for name, sizes in SIZES.items():
        for rate in RATES:
            rows, own = coverage(sizes, rate, trials, seed=1)
            print(f"| {name} | {rate:.2f} | {rows:.1%} | {own:.1%} |", flush=True)
    print("\n| copies | McNemar over rows errs | by cluster errs |\n| --- | --- | --- |")
    for name, sizes in SIZES.items():
        rows, own = errors(sizes, trials, seed=2)
        print(f"| {name} | {rows:.1%} | {own:.1%} |", flush=True)


if __name__ == "__main__":
    main()
