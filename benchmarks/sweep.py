"""What the cells of a sweep share: 27 cells of alpha, lambda and tokens over one defense, counted from the store.

    python -m benchmarks.sweep --rows 2 --iterations 20 > benchmarks/sweep.md

Runs ``harness sweep`` in this process into a new store, counts the shards that are there, and runs the command again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.pipeline.evaluate import Budget
from harness.pipeline.executor import Resources
from harness.pipeline.request import Places
from harness.pipeline.sweep import run_sweep
from harness.pipeline.sweep_grid import Grid, parse
from harness.pipeline.sweep_plan import Sweep, plan_of
from harness.store.fingerprint import versions
from harness.store.shards import Store

AXES = ("regen.alpha=0.3,0.5,0.7", "regen.lam=0.5,1,2", "regen.tokens=4,8,16")
LIBRARIES = ("torch", "diffusers", "transformers", "pyarrow")


def sweep(rows: int, iterations: int) -> Sweep:
    """The sweep: one defense, one benchmark, 27 cells."""
    lists = {"defense": ("uce",), "bench": ("ring-a-bell-k77",), "regen": (f"resafe:iterations={iterations}",)}
    return Sweep(grid=Grid(lists=lists, axes=parse(AXES)), profile="shapes", limit=rows)


def command(rows: int, iterations: int) -> list[str]:
    """The same as a person types it."""
    words = ["sweep", "--defense", "uce", "--bench", "ring-a-bell-k77", "--profile", "shapes", "--executor", "inline"]
    words += ["--regen", f"resafe:iterations={iterations}", "--limit", str(rows)]
    return [*words, *(word for axis in AXES for word in ("--set", axis))]


def table(asked: Sweep, places: Places) -> list[str]:
    """A line per stage: shards in the store, shards that as many evaluations one by one need, seconds."""
    store, planned = Store(places.store), plan_of(asked, places)
    lines = ["| stage | computed | by 27 separate evals | seconds |", "| --- | --- | --- | --- |"]
    for stage in planned.whole.stage_names():
        paths = sorted((places.store / stage).glob("*/*.parquet"))
        each = [sum(s.stage == stage for s in v.stages) for c in planned.whole.conditions for v in c.variants]
        base = len(planned.cells) * each[0] if stage.startswith("score") else 0  # each scores the images as drawn too
        seconds = sum(cost["seconds"] for path in paths if (cost := store.cost(path)))
        lines.append(f"| {stage} | {len(paths)} | {sum(each[1:]) + base} | {seconds:.1f} |")
    return lines


def main() -> None:
    """Run and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20)
    args = parser.parse_args()
    asked = sweep(args.rows, args.iterations)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = Places(store=folder / "store", out=folder / "runs", data=folder / "data")
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            finished = run_sweep(
                asked, places, Resources(executor="inline"), Budget.parse("0"), lambda _: None, "benchmarks.sweep"
            )
        first = time.perf_counter() - started
        if finished.record is None:
            raise SystemExit(f"not complete: {finished.outcome}")
        assert len(finished.record["cells"]) == 27
        lines = table(asked, places)
        again = [sys.executable, "-m", "harness", *command(args.rows, args.iterations)]
        started = time.perf_counter()
        folders = ["--store", str(places.store), "--out", str(places.out), "--data", str(places.data)]
        subprocess.run([*again, *folders], check=True, capture_output=True)
        repeated = time.perf_counter() - started
    known = ", ".join(f"{library} {version}" for library, version in versions(LIBRARIES).items())
    print("# What the cells of a sweep share\n")
    print(f"    python -m benchmarks.sweep --rows {args.rows} --iterations {args.iterations}\n")
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"{machine}, {known}\n")
    print(
        f"The sweep is `{' '.join(['harness', *command(args.rows, args.iterations)])}`: 27 cells of {args.rows} rows."
    )
    print("Each number is of shards in the store (one shard per stage and fingerprint, as all rows fit one).\n")
    print("\n".join(lines))
    print(f"\nWall time {first:.0f} s in one process; the same command again, all included: {repeated:.1f} s.")


if __name__ == "__main__":
    main()
