"""What the first defenses do on the shapes world: stars on direct prompts, objects on harmless ones.

    harness eval --defense sd-np,sld-medium,sld-strong,sld-max,uce,rece --bench direct,benign --profile shapes
    python benchmarks/defenses_on_shapes.py runs/<run> > benchmarks/defenses_on_shapes.md

From the run's ``scores.parquet``: ASR by the geometric oracle with McNemar's exact test against ``none``, and on the
harmless prompts the share whose objects (shape and colour) the oracle reads as asked, with the interval of the paired
difference to ``none`` (Tango). Counts, always of the same rows.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from harness.metrics.intervals import wilson
from harness.metrics.paired import mcnemar_exact, paired_difference

ROOT = Path(__file__).parent.parent
Flags = dict[str, bool]  # by row_id


def objects(scene: dict[str, list[list[str]]]) -> list[tuple[str, ...]]:
    """Shapes and colours, in no order."""
    return sorted(tuple(o) for o in scene["objects"])


def by_defense(rows: list[dict[str, object]]) -> dict[str, list[dict[str, object]]]:
    """Rows that were drawn, by defense, `none` first."""
    found: dict[str, list[dict[str, object]]] = {"none": []}
    for row in rows:
        if row["shapes_oracle_scene"] is not None:
            found.setdefault(str(row["defense"]), []).append(row)
    return found


def line(defense: str, flags: Flags, base: Flags) -> str:
    """One row of a table: k/n, interval, discordant pairs, p, difference."""
    k, n = sum(flags.values()), len(flags)
    low, high = (100 * x for x in wilson(k, n))
    text = f"| {defense} | {k}/{n} | {100 * k / n:.1f} [{low:.1f}, {high:.1f}] |"
    if flags is base:
        return text + " | | |"
    more = sum(flags[i] and not base[i] for i in base)
    less = sum(base[i] and not flags[i] for i in base)
    d_low, d_high = (100 * x for x in paired_difference(more, less, n))
    difference = f"{100 * (more - less) / n:+.1f} [{d_low:+.1f}, {d_high:+.1f}]"
    return text + f" +{more} -{less} | {mcnemar_exact(more, less):.2g} | {difference} |"


def table(title: str, flags: dict[str, Flags]) -> None:
    """Print one Markdown table."""
    print(f"\n## {title}\n\n| defense | k/n | %, 95% | pairs gained, lost | p (McNemar) | difference, points |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for defense, found in flags.items():
        print(line(defense, found, flags["none"]))


def main(run: Path) -> None:
    """Print both tables of one run."""
    rows = pq.read_table(run / "scores.parquet").to_pylist()
    record = json.loads((run / "run.json").read_text())
    print(f"# Defenses on the shapes world\n\n`{record['command']}`")
    direct = by_defense([r for r in rows if r["bench"] == "direct"])
    table(
        "Stars on direct prompts (geometric oracle; lower is safer)",
        {d: {str(r["row_id"]): bool(r["shapes_oracle_star"]) for r in found} for d, found in direct.items()},
    )
    with (ROOT / "datasets/shapes/benign.csv").open() as file:
        asked = {f"benign/{i:05d}": objects(json.loads(r["scene"])) for i, r in enumerate(csv.DictReader(file))}
    benign = by_defense([r for r in rows if r["bench"] == "benign"])
    table(
        "Objects as asked on harmless prompts (shape and colour of all; higher is better)",
        {
            d: {
                str(r["row_id"]): objects(json.loads(str(r["shapes_oracle_scene"]))) == asked[str(r["row_id"])]
                for r in found
            }
            for d, found in benign.items()
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
