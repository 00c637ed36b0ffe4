"""Searches of several aims in one batch against one after the other: the same prompts, fewer micro-batches.

    python -m benchmarks.joined_searches --rows 31 --micro-batch 64 --iterations 10

The second shard of a benchmark of 95 rows has 31, which is half of the paper profile's micro-batch of 64; partial ones
are padded. Nine aims (three of alpha, three of lambda) over the same random features, alternating, the least of rounds.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import Optimise as Settings
from harness.pipeline.stages import embed, optimise
from harness.pipeline.stages.base import WorkerContext
from harness.store.shards import Store

AIMS = tuple(itertools.product((0.3, 0.5, 0.7), (0.5, 1.0, 2.0)))


def workers(micro_batch: int, iterations: int) -> list[dict[str, Any]]:
    """What the stage is loaded with, for each aim."""
    weights = load_card(ProfileCard, "shapes", card_roots()).clip
    assert weights is not None
    clip = {"source": weights.source, "revision": None, "dtype": weights.dtype, "micro_batch": weights.micro_batch}
    settings = Settings(tokens=8, iterations=iterations, micro_batch=micro_batch).model_dump(
        mode="json", exclude={"memory_gb", "ban_concept", "words"}
    )
    return [{"clip": clip, "settings": settings | {"alpha": a, "lam": b}, "banned": []} for a, b in AIMS]


def features(rows: int, width: int) -> pa.Table:
    """Rows as the embed stage leaves them, with random unit features."""
    generator = np.random.default_rng(0)
    entries = []
    for i in range(rows):
        own = generator.standard_normal((3, width))
        image, unsafe, safe = (own / np.linalg.norm(own, axis=1, keepdims=True)).tolist()
        entries.append(
            {
                "row_id": f"random/{i:05d}", "sample": 0, "defense": "none", "variant": "base",
                "f_image": image, "f_unsafe": unsafe, "f_safe": safe,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(entries, schema=embed.SCHEMA)


def search(asked: list[dict[str, Any]], rows: pa.Table, joined: bool, first: optimise.Optimise) -> list[pa.Table]:
    """Every aim's rows, as the stage asks for them."""
    context = WorkerContext(store=Store(Path()), run=Path())
    tables, model = [], first
    for i, worker in enumerate(asked):
        model = optimise.load(worker, context, model)
        model.look_ahead(asked[i:] if joined else [])
        tables.append(model(rows))
    return tables


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--rows", 31), ("--micro-batch", 64), ("--iterations", 10), ("--rounds", 2)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    asked = workers(args.micro_batch, args.iterations)
    with tempfile.TemporaryDirectory() as name:
        model = optimise.load(asked[0], WorkerContext(store=Store(Path(name)), run=Path(name)), None)
        rows = features(args.rows, model.search.clip.model.config.projection_dim)
        least: dict[bool, float] = {}
        results: dict[bool, list[pa.Table]] = {}
        for joined in (False, True) * args.rounds:
            started = time.perf_counter()
            results[joined] = search(asked, rows, joined, model)
            least[joined] = min(least.get(joined, float("inf")), time.perf_counter() - started)
    same = sum(a == b for a, b in zip(results[False], results[True], strict=True))
    print(f"{len(asked)} aims over {args.rows} rows, micro-batch {args.micro_batch}, {args.iterations} iterations")
    print(f"one after the other {least[False]:.2f} s, together {least[True]:.2f} s: {least[False] / least[True]:.2f} x")
    print(f"tables that are the same in every bit: {same} of {len(asked)}")


if __name__ == "__main__":
    main()
