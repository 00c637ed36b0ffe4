"""Seconds per stage of a run, from its sidecars: where the time of an evaluation goes.

    python benchmarks/stages.py runs/<run>

Reads ``log/*.jsonl`` (one line per shard and stage, written by the actors) and prints a Markdown table:
shards, rows, seconds of actor time, milliseconds per row. Model loading is part of each actor's first shard.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(run: Path) -> None:
    """Print the table of one run."""
    seconds: dict[str, list[float]] = defaultdict(list)
    rows: dict[str, int] = defaultdict(int)
    times: list[float] = []
    for path in sorted((run / "log").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "seconds" in entry:
                seconds[entry["stage"]].append(entry["seconds"])
                rows[entry["stage"]] += entry["rows"]
                times += [entry["time"] - entry["seconds"], entry["time"]]
    print("| stage | shards | rows | actor seconds | ms a row | slowest shard, s | fastest shard, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for stage, spent in seconds.items():
        each = 1000 * sum(spent) / rows[stage]
        ends = f"{max(spent):.2f} | {min(spent):.2f}"
        print(f"| {stage} | {len(spent)} | {rows[stage]} | {sum(spent):.1f} | {each:.1f} | {ends} |")
    print(f"\nfirst shard begun to last shard done: {max(times) - min(times):.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
