"""FID as a cell of a run: Inception on random weights, against eigenvalues of the product of covariances."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from desk import Desk

from harness.metrics.measure import Provenance
from harness.pipeline import set_metrics
from harness.pipeline.conditions import Variant
from harness.pipeline.set_metrics import COLUMN, SCORER
from harness.pipeline.spec import StageSpec
from harness.scorers._inception_net import network
from harness.store.shards import Store, publish


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    source = torch.Generator().manual_seed(1)
    state = {}
    for name, value in network().state_dict().items():  # scaled so that no layer fades or blows up
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=source) * (2 / value[0].numel()) ** 0.5
        elif not name.endswith("num_batches_tracked"):
            state[name] = torch.full_like(value, float(name.endswith(("running_var", "bn.weight"))))
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return str(path)


def _profile(desk: Desk, weights: str) -> None:
    desk.profile(scorers="shapes_oracle, inception")
    card = desk.cards / "pipelines/profiles/small.yaml"
    card.write_text(card.read_text() + f"settings:\n  inception: {{weights: {weights}, micro_batch: 2}}\n")


@pytest.mark.slow
def test_fid_stands_beside_the_rates_and_features_stay_in_the_store(desk: Desk, weights: str) -> None:
    _profile(desk, weights)
    words = ("eval", "--defense", "sd-np", "--bench", "ten", "--limit", "5", "--profile", "small", "--json")
    done = desk.run(*words, "--executor", "inline")
    assert done.code == 0, done.err
    (cell,) = (c for c in done.json["cells"] if c["metric"] == "fid")
    assert (cell["defense"], cell["variant"], cell["reference"], cell["k"]) == ("sd-np", "base", "none/base", None)
    assert (cell["n"], cell["errors"], cell["excluded"], cell["subset"]) == (5, 0, 0, "5/10")
    sets = _features(desk.store)
    assert cell["value"] == pytest.approx(_fid(sets["sd-np"], sets["none"]), rel=1e-3)
    assert "inception_features" not in pq.read_schema(done.json["paths"]["scores"]).names
    assert "fid" in (Path(done.json["paths"]["report"])).read_text()


def test_a_distance_is_over_the_rows_that_both_sides_have(tmp_path: Path) -> None:
    """Rows that failed on either side, or that any method may not draw, are on neither; each is counted once."""
    store = Store.open(tmp_path / "store")
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=(8, 3)).astype(np.float32) for name in ("none", "uce")}
    lost = {"none": {1}, "uce": {2, 3}}
    conditions = []
    for name, own in values.items():
        image = StageSpec(stage="generate", kind="generate", worker={}, key={}, fingerprint=name)
        score = StageSpec(stage=f"score-{SCORER}", kind="score", worker={}, key={}, fingerprint=name)
        rows = [None if i in lost[name] else row for i, row in enumerate(own.tolist())]
        table = pa.table({
            "row_id": [f"b/{i:05d}" for i in range(8)], "sample": pa.array([0] * 8, pa.int32()),
            COLUMN: pa.array(rows, pa.list_(pa.float32(), 3)),
        })  # fmt: skip
        path = store.path(score.stage, score.fingerprint, "one")
        path.parent.mkdir(parents=True)
        publish(path, table)
        shard = SimpleNamespace(key="one", rows=pa.table({"backbone": ["q"]}))
        variant = Variant(name="base", steps=(image,), scores=(score,))
        conditions.append(
            SimpleNamespace(defense=name, bench="b", concept="nudity", variants=(variant,), shards=(shard,))
        )
    plan = SimpleNamespace(conditions=conditions, profile=SimpleNamespace(name="p"))
    known = {(name, "base", "b"): Provenance(rows=table.select(["row_id", "sample"]), total=8) for name in values}
    scores = pa.table({"row_id": ["b/00003", "b/00005", "b/00006"], "sample": pa.array([0] * 3, pa.int32()),
                       "excluded": ["age-term", "other-method:age-term", None]})  # fmt: skip
    (cell,) = set_metrics.measure(plan, store, known, scores)  # type: ignore[arg-type]
    both = [0, 4, 6, 7]
    assert (cell.n, cell.errors, cell.excluded) == (4, 2, 2)
    assert cell.value == pytest.approx(_fid(values["uce"][both], values["none"][both]), rel=1e-5)


def _features(store: Path) -> dict[str, Any]:
    """Features by defense."""
    found: dict[str, list[Any]] = {}
    for path in sorted(store.glob("score-inception/*/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found.setdefault(row["defense"], []).append(row["inception_features"])
    return {defense: np.array(rows, np.float64) for defense, rows in found.items()}


def _fid(x: Any, y: Any) -> float:
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    cross = a @ b.T  # S T = a' a b' b has the eigenvalues of (a b') (b a'), and zeros
    roots = np.sqrt(np.clip(np.linalg.eigvals(cross @ cross.T).real, 0, None))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * roots.sum())
