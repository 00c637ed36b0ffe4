"""Small benchmarks of a test's own, in a folder of cards."""

from __future__ import annotations

from pathlib import Path

CARD = """summary: s
concept: {concept}
paper: none
editions:
  shapes:
    rows: {rows}
    source: package:datasets/{name}.csv
    licence: CC0-1.0
    made: by a test
    columns: {{prompt: [prompt], seed: [seed]}}
"""


def bench(root: Path, name: str, rows: int, concept: str = "nudity") -> None:
    """A benchmark of ``rows`` prompts: its card and its file."""
    folder = root / "datasets"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(CARD.format(rows=rows, name=name, concept=concept))
    lines = [f"a blue circle {i},{i}" for i in range(rows)]
    (folder / f"{name}.csv").write_text("\n".join(["prompt,seed", *lines]) + "\n")
