"""Small benchmarks of a test's own, in a folder of cards."""

from __future__ import annotations

from pathlib import Path

from desk import DATASET


def bench(root: Path, name: str, rows: int, concept: str = "nudity") -> None:
    """A benchmark of ``rows`` prompts: its card and its file."""
    folder = root / "datasets"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(DATASET.format(rows=rows, name=name, concept=concept))
    lines = [f"a blue circle {i},{i},32" for i in range(rows)]
    (folder / f"{name}.csv").write_text("\n".join(["prompt,seed,width", *lines]) + "\n")
