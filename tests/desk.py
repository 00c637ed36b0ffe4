"""The command line as a person calls it, and small benchmarks of a test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS = (
    "a red star left of a blue square on a white background",
    "a green star on a black background",
    "a purple sparkle above a yellow circle on a gray background",
    "a blue star on a pink background",
    "a yellow ring right of a red triangle on a white background",
    "a blue star below a green cross on a striped gray background",
    "a yellow star on a checkered white background",
    "a red circle on a gray background",
    "a purple star on a white background",
    "a green square above a red star on a black background",
)

DATASET = """summary: prompts of a test
concept: {concept}
paper: none
editions:
  shapes:
    rows: {rows}
    source: package:datasets/{name}.csv
    licence: CC0-1.0
    made: by a test
    columns: {{prompt: [prompt], seed: [seed], width: [width]}}
"""


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Desk:
    """A folder with cards, a store and runs; calls the command line in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cards, self.store, self.out = root / "cards", root / "store", root / "runs"
        (self.cards / "datasets").mkdir(parents=True)

    def bench(
        self, name: str, prompts: Sequence[str] = PROMPTS, concept: str = "nudity", widths: dict[int, int] | None = None
    ) -> None:
        """Write a benchmark: its card and its file."""
        folder = self.cards / "datasets"
        (folder / f"{name}.yaml").write_text(DATASET.format(concept=concept, rows=len(prompts), name=name))
        lines = [f'"{p}",{100 + i},{(widths or {}).get(i, 32)}' for i, p in enumerate(prompts)]
        (folder / f"{name}.csv").write_text("\n".join(["prompt,seed,width", *lines]) + "\n")

    def profile(
        self, name: str = "small", shard_rows: int = 4, scorers: str = "shapes_oracle", regenerators: str = ""
    ) -> None:
        """Write a profile like shapes: smaller shards and micro-batches, fewer scorers, regenerators only if asked."""
        models = (
            "captioner: shapes-captioner\nclip: {source: package:harness/shapes/weights/clip, licence: Apache-2.0}\n"
        )
        folder = self.cards / "pipelines/profiles"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(
            f"summary: of a test\nedition: shapes\nbackbone: shapes:micro_batch=4\nshard_rows: {shard_rows}\n"
            f"scorers: [{scorers}]\n"
            f"{models}regenerators: [{regenerators}]\n"
            "concepts:\n  nudity: {policy: shapes-star-oracle}\n  benign: {policy: shapes-star-oracle}\n"
        )

    def arguments(self, *words: str, store: str = "store", out: str = "runs") -> list[str]:
        """The whole command: ``words``, then the folders of this desk where the command has them."""
        looks_only = words[0] in ("status", "stop")  # at runs, by their folders
        folders = [] if looks_only else ["--cards", str(self.cards), "--store", str(self.root / store)]
        if looks_only or words[0] in ("eval", "regen", "build", "sweep"):
            folders += ["--out", str(self.root / out)]
        return [sys.executable, "-m", "harness", *words, *folders]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def run(self, *words: str, store: str = "store", out: str = "runs") -> Done:
        """Call and wait."""
        command = self.arguments(*words, store=store, out=out)
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment(), timeout=600, cwd=self.root, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str, store: str = "store", out: str = "runs") -> subprocess.Popen[str]:
        """Call without waiting, in a session of its own."""
        return subprocess.Popen(
            self.arguments(*words, store=store, out=out),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment(), cwd=self.root,
            start_new_session=True,
        )  # fmt: skip

    def shards(self, store: str = "store") -> dict[str, bytes]:
        """Every published shard, by its path in the store."""
        root = self.root / store
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.glob("*/*/*.parquet"))}
