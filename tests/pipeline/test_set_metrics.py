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


def test_every_row_has_features_or_failed_or_was_excluded_and_none_is_two_of_these(tmp_path: Path) -> None:
    """Both stages may say of one row why it has no features: it is one row all the same."""
    store = Store.open(tmp_path / "store")
    images, scores = (
        StageSpec(stage=s, kind=s, worker={}, key={}, fingerprint="f") for s in ("draw", f"score-{SCORER}")
    )
    condition = SimpleNamespace(shards=(SimpleNamespace(key="one"),))
    outcomes = {"excluded": [None, None, "age-term", "age-term", None], "error": [None, "crash", None, None, None]}
    found = {COLUMN: [[1.0, 2.0], None, None, None, None], f"{SCORER}_error": [None, "crash", None, "crash", "hang"]}
    types = {COLUMN: pa.list_(pa.float32(), 2)}
    for stage, columns in ((images, outcomes), (scores, found)):
        table = pa.table({name: pa.array(v, types.get(name, pa.string())) for name, v in columns.items()})
        path = store.path(stage.stage, stage.fingerprint, "one")
        path.parent.mkdir(parents=True)
        publish(path, table)
    variant = Variant(name="resafe", steps=(images,), scores=(scores,))
    features, errors, excluded = set_metrics._features(condition, variant, store)  # type: ignore[arg-type]
    assert (features.tolist(), errors, excluded) == ([[1.0, 2.0]], 2, 2)


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
