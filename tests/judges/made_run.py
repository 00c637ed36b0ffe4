"""A finished run over a small store, its images drawn by the world of shapes; no model is involved."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.shapes import world
from harness.store.schema import IMAGE
from harness.store.shards import Store, publish

PLACES = (("none", "base"), ("none", "resafe"), ("rece", "base"), ("rece", "resafe"))


class MadeRun:
    """A run's folder, its record and its store."""

    def __init__(self, root: Path, name: str = "run") -> None:
        self.store, self.folder = root / "store", root / "runs" / name
        self.record: dict[str, Any] = {"run": name, "backbone": "shapes", "profile": "shapes", "conditions": []}
        Store.open(self.store)

    def add(
        self, bench: str, concept: str, rows: int, places: Sequence[tuple[str, str]] = PLACES, lost: Sequence[int] = ()
    ) -> MadeRun:
        """Draw ``rows`` images for every place; the rows ``lost`` failed under every method but the undefended."""
        for defense in dict.fromkeys(d for d, _ in places):
            variants = [v for d, v in places if d == defense]
            shard = hashlib.sha256(f"{bench}{defense}".encode()).hexdigest()[:16]
            images = []
            for variant in variants:
                stage, fingerprint = ("generate" if variant == "base" else "draw"), f"{bench}-{defense}-{variant}"
                table = pa.Table.from_pylist(
                    [_line(bench, concept, i, defense, variant, i in lost) for i in range(rows)], schema=IMAGE
                )
                publish(self.store / stage / fingerprint / f"{shard}.parquet", table)
                images.append({"variant": variant, "images": [stage, fingerprint]})
            self.record["conditions"].append(
                {"bench": bench, "concept": concept, "defense": defense, "shards": [shard], "variants": images}
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(json.dumps(self.record))
        return self


def _line(bench: str, concept: str, i: int, defense: str, variant: str, lost: bool) -> dict[str, Any]:
    data = io.BytesIO()
    rng = random.Random(f"{bench}{i}{defense}{variant}")
    world.render(world.sample_scene(rng), rng).save(data, format="PNG")
    failed = lost and (defense, variant) != ("none", "base")
    png = None if failed else data.getvalue()
    return {
        "row_id": f"{bench}/{i:05d}", "sample": 0, "bench": bench, "concept": concept, "prompt": f"secret prompt {i}",
        "seed": 1, "guidance": 4.0, "width": 32, "height": 32, "excluded": None, "profile": "shapes",
        "backbone": "shapes", "defense": defense, "variant": variant, "image": png,
        "image_sha256": png and hashlib.sha256(png).hexdigest(), "degenerate": None,
        "error": "regenerate:failed" if failed else None,
    }  # fmt: skip
