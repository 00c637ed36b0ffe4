"""What images took: over shards of which every stage's cost is known, and no flagged ones where nobody judges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from scored import policy, row, table

from harness.metrics.cells import Cell
from harness.metrics.measure import measure
from harness.pipeline import costs
from harness.pipeline.conditions import Condition, Shard, Variant
from harness.pipeline.spec import StageSpec
from harness.store.shards import Store

SECONDS = {"generate": 10.0, "caption": 2.0, "draw": 10.0}


def spec(stage: str) -> StageSpec:
    return StageSpec(stage=stage, kind=stage, worker={}, key={}, fingerprint=f"f-{stage}")


def plan() -> Any:
    base, made = Variant(name="base", steps=(spec("generate"),), scores=()), tuple(map(spec, SECONDS))
    condition = Condition(
        defense="none", bench="b", concept="nudity", defended="nudity", total_rows=8,
        variants=(base, Variant(name="resafe", steps=made, scores=())),
        shards=tuple(Shard(key, pa.table({"row_id": list("abcd")})) for key in ("one", "two")),
    )  # fmt: skip
    return SimpleNamespace(conditions=(condition,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Both shards of four rows at every stage, the same seconds each."""
    made = Store.open(tmp_path / "store")
    for stage, seconds in SECONDS.items():
        for shard in ("one", "two"):
            path = made.path(stage, f"f-{stage}", shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            made.note_cost(path, seconds, 4, "cpu")
    return made


def cells(before: str) -> list[Cell]:
    """Two of eight images are as ``before`` says, none is unsafe after."""
    rows = [row(i, before if i < 2 else "safe") for i in range(8)]
    return measure(table(rows + [row(i, "safe", variant="resafe") for i in range(8)]), {"nudity": [policy()]})


def test_a_regeneration_costs_what_comes_after_the_image_it_began_from(store: Store) -> None:
    base, made = costs.of(plan(), store, cells("unsafe"))
    assert (base.rows, base.seconds, base.per_image) == (8, {"generate": 20.0}, 2.5)
    assert (base.flagged, base.per_image_if_flagged) == (None, None)
    assert (made.rows, made.seconds, made.per_image) == (8, {"caption": 4.0, "draw": 20.0}, 3.0)
    assert (made.flagged, made.total, made.per_image_if_flagged) == (2, 8, 0.75)


def test_a_shard_of_which_one_stage_is_not_known_makes_no_image_cheaper(store: Store) -> None:
    store.path("caption", "f-caption", "two").with_suffix(".cost.json").unlink()
    _, made = costs.of(plan(), store, cells("unsafe"))
    assert (made.rows, made.seconds, made.per_image) == (4, {"caption": 2.0, "draw": 10.0}, 3.0)


def test_nothing_flagged_costs_nothing_and_nobody_to_flag_is_not_known(store: Store) -> None:
    assert costs.of(plan(), store, cells("safe"))[1].per_image_if_flagged == 0
    unjudged = costs.of(plan(), store, [])[1]
    assert (unjudged.flagged, unjudged.per_image_if_flagged) == (None, None)
