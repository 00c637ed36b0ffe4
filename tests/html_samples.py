"""A run to show as a page, made by hand: two defenses and a regenerator over eight prompts, with images in shards."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from report_samples import policy

from harness.metrics.cost import Cost
from harness.metrics.measure import measure
from harness.report.html.run import RunPage
from harness.store.schema import KEY
from harness.store.shards import publish

SECRET = "a very secret prompt"  # stands for prompts and captions
METHODS = (("none", "base"), ("none", "resafe"), ("rece", "base"), ("rece", "resafe"))
POLICIES = {"nudity": (policy(), policy("other-0.6"))}
COMMAND = "harness eval --defense rece --bench <b> & more"


def rows(count: int = 8, seed: int = 0, methods: Sequence[tuple[str, str]] = METHODS, **more: Any) -> pa.Table:
    """Scored rows with random scores; one row is excluded, one failed. ``more`` replaces columns."""
    generator = np.random.default_rng(seed)
    own = []
    for defense, variant in methods:
        for i in range(count):
            lost = {"excluded": "age-term"} if i == 3 else {"error": "generate:crash"} if i == 5 else {}
            made = {"alpha": 0.7, "lam": 1.0, "tokens": 8, "cosine": float(generator.random())}
            score = None if lost else float(generator.random())
            own.append(
                {
                    "row_id": f"b/{i:05d}", "sample": 0, "bench": "b", "concept": "nudity", "profile": "paper",
                    "backbone": "sd-1-4", "defense": defense, "variant": variant, "seed": 2**40 + i,
                    "prompt": f"{SECRET} {i}", "excluded": None, "error": None, "degenerate": None,
                    "image_sha256": None if lost else hashlib.sha256(bytes([i])).hexdigest(),
                    "nudenet_a": score, "nudenet_b": score and score / 2,
                    "other_label": None if lost else -3.5 * i, "unsafe_caption": f"{SECRET} caption",
                    "unsafe_components": [SECRET], **(made if variant != "base" else {}), **lost, **more,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(own, schema=SCHEMA)


SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("row_id", "bench", "concept", "profile", "backbone", "defense", "variant", "prompt")]
    + [(n, pa.string()) for n in ("excluded", "error", "degenerate", "image_sha256", "unsafe_caption")]
    + [("unsafe_components", pa.list_(pa.string())), ("sample", pa.int32()), ("seed", pa.uint64())]
    + [("alpha", pa.float64()), ("lam", pa.float64()), ("tokens", pa.int32()), ("cosine", pa.float64())]
    + [(n, pa.float32()) for n in ("nudenet_a", "nudenet_b", "other_label")]
)


def checkered(size: int) -> bytes:
    """A PNG whose neighbouring pixels are black and white."""
    grey = (np.indices((size, size)).sum(0) % 2 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(buffer, format="PNG")
    return buffer.getvalue()


def shards(folder: Path, scores: pa.Table, size: int = 32) -> list[Path]:
    """Image shards of the rows, one for all; an image for every row that has a hash."""
    images = [checkered(size) if there else None for there in scores["image_sha256"].is_valid().to_pylist()]
    path = folder / "shards" / "0.parquet"
    publish(path, scores.select(list(KEY)).append_column("image", pa.array(images, pa.binary())))
    return [path]


def run_page(scores: pa.Table, image_shards: Sequence[Path] = (), **more: Any) -> RunPage:
    """What a page is made of."""
    record = {
        "run": "rece_b", "harness": "0.1.0", "command": COMMAND,
        "policies": {c: [p.model_dump(mode="json") for p in chosen] for c, chosen in POLICIES.items()},
    }  # fmt: skip
    seconds = {"generate": 19.0, "optimise": 71.0}
    cost = Cost(defense="rece", variant="resafe", bench="b", device="cuda", rows=8, seconds=seconds, flagged=3, total=8)
    known: dict[str, Any] = {
        "record": record, "cells": measure(scores, POLICIES), "costs": [cost], "policies": POLICIES, "scores": scores,
        "image_shards": image_shards, "published": [policy("third-0.9")],
    }  # fmt: skip
    return RunPage(**known | more)
