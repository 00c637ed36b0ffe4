"""A paper's largest table straight from Parquet: 15 rows x 6,402 prompts x 2, counted anew by a policy.

The rows are made up, with the columns of NudeNet and of a pair scorer, and written as one run; then
`harness report table5 --policy resafe-nudity-0.45` is called in a process of its own, several times. Its memory is the
process's largest.

    python -m benchmarks.report [--times 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from harness import scorers
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.report import ReportCard
from harness.metrics import cells
from harness.metrics.cells import Cell
from harness.store.shards import replace

CARD, POLICY = "table5", "resafe-nudity-0.45"
_CALL = """
import resource, sys
from harness.cli import main
sys.argv = ["harness", *sys.argv[1:]]
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


class Measured(NamedTuple):
    """One call."""

    seconds: float
    cpu_seconds: float
    megabytes: float  # largest resident set


def condition(defense: str, variant: str, bench: str, n: int, rng: np.random.Generator) -> pa.Table:
    """Scores of one method over one benchmark: a detector's columns, and a similarity."""
    text = {
        "row_id": [f"{bench}/{i:05d}" for i in range(n)],
        "bench": [bench] * n,
        "concept": ["nudity"] * n,
        "profile": ["paper"] * n,
        "backbone": ["sd-1-4"] * n,
        "defense": [defense] * n,
        "variant": [variant] * n,
        "prompt": [f"a prompt of twelve words or so that stands for number {i} of {bench}" for i in range(n)],
    }
    columns: dict[str, pa.Array] = {name: pa.array(values, pa.string()) for name, values in text.items()}
    columns |= {"sample": pa.array(np.zeros(n, np.int32)), "seed": pa.array(rng.integers(0, 2**32, n, np.uint64))}
    lost = rng.random(n) < 0.01
    columns["excluded"] = pa.array(["age-term" if one else None for one in lost], pa.string())
    columns |= {name: pa.nulls(n, pa.string()) for name in ("error", "degenerate", "nudenet_error")}
    for name, kind in scorers.columns("nudenet").items():
        if pa.types.is_floating(kind):
            columns[name] = pa.array(rng.random(n) * rng.random(n), kind, mask=lost)
    columns["clip_image_cosine@same/base"] = pa.array(rng.random(n), pa.float32())
    return pa.table(columns)


def make(folder: Path, card: ReportCard) -> int:
    """Write a run that fills the table; returns its rows."""
    rng = np.random.default_rng(0)
    tables, own = [], []
    for row in card.rows:
        for column in card.columns:
            for variant in card.variants:
                size = column.n or 0
                tables.append(condition(row.defense, variant, column.bench, size, rng))
                own.append(_cell(row.defense, variant, column.bench, size))
    run = folder / "all_paper_00000000"
    run.mkdir(parents=True)
    scores = pa.concat_tables(tables)
    replace(run / "scores.parquet", scores)
    cells.write(run / "cells.json", own)
    (run / "run.json").write_text(json.dumps({"command": "python -m benchmarks.report"}))
    return int(scores.num_rows)


def _cell(defense: str, variant: str, bench: str, n: int) -> Cell:
    """What a run says of its images beside any policy."""
    return Cell(
        profile="paper", backbone="sd-1-4", defense=defense, variant=variant, bench=bench, concept="nudity",
        metric="degenerate", scorer=None, policy=None, main=False, k=0, n=n, value=0.0, errors=0, excluded=0, low=0.0,
        high=0.01, interval="wilson", fingerprints=("generate:0", "score-nudenet:0"),
    )  # fmt: skip


def call(out: Path, to: Path) -> Measured:
    """One report, in a process of its own."""
    words = ["report", CARD, "--policy", POLICY, "--out", str(out), "--to", str(to)]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _CALL, *words], check=True, capture_output=True, text=True)
    largest, cpu = (float(word) for word in done.stdout.split()[-2:])
    return Measured(time.perf_counter() - start, cpu, largest / 1024)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    card = load_card(ReportCard, CARD, card_roots())
    with tempfile.TemporaryDirectory() as held:
        out = Path(held) / "runs"
        rows = make(out, card)
        size = next(out.glob("*/scores.parquet")).stat().st_size / 1e6
        found = {form: [call(out, Path(held) / f"x.{form}") for _ in range(times)] for form in ("md", "csv", "tex")}
    versions = f"Python {platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}"
    print(f"{rows:,} rows, {size:.0f} MB of Parquet; {versions}; {os.cpu_count()} cores ({platform.machine()}), of "
          f"{times} calls the least\n")  # fmt: skip
    print("| format | s | CPU s | MB, largest resident set |\n| --- | ---: | ---: | ---: |")
    for form, calls in found.items():
        least = [min(values) for values in zip(*calls, strict=True)]
        print(f"| {form} | {least[0]:.1f} | {least[1]:.1f} | {least[2]:.0f} |")


if __name__ == "__main__":
    main()
