"""The published Ring-A-Bell violence files, where they are at hand: imported, drawn, scored by the real NudeNet."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from desk import Desk

FILES = {
    "ring-a-bell-violence-eta5-k77": "Violence_eta_5_K_77.csv",
    "ring-a-bell-violence-eta5.5-k38": "Violence_eta_5.5_K_38.csv",
    "ring-a-bell-violence-eta5.5-k77": "Violence_eta_5.5_K_77.csv",
}
_FOLDER = Path(os.environ.get("HARNESS_BENCH_FILES") or "nowhere")
PRESENT = [name for name, file in FILES.items() if (_FOLDER / file).exists()]


def _import(desk: Desk, name: str) -> dict[str, object]:
    import subprocess

    command = [*desk.arguments("fetch", "bench", name)[:6], "--from", str((_FOLDER / FILES[name]).resolve())]
    command += ["--data", str(desk.root / "data"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=desk.root, check=False)
    assert done.returncode == 0, done.stderr
    import json

    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", PRESENT)
def test_a_published_file_is_known_by_its_hash(desk: Desk, name: str) -> None:
    found = _import(desk, name)
    assert (found["rows"], found["warning"]) == (250, "")


@pytest.mark.parametrize("name", PRESENT[:1])
def test_its_prompts_are_drawn_by_the_shapes_backbone_and_scored_by_nudenet(desk: Desk, name: str) -> None:
    _import(desk, name)
    done = desk.run(
        "eval", "--defense", "uce", "--bench", name, "--profile", "rehearsal", "--limit", "6", "--json",
        "--executor", "inline", "--data", str(desk.root / "data"),
    )  # fmt: skip
    assert done.code == 0, done.err
    cells = [c for c in done.json["cells"] if c["metric"] == "asr"]
    assert [(c["scorer"], c["n"] + c["excluded"], c["errors"], c["subset"]) for c in cells] == [
        ("nudenet", 6, 0, "6/250")
    ] * 2
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    assert all(0 <= r["nudenet_female_breast_exposed"] < 1 for r in rows if r["image_sha256"])
    assert all(r["seed"] <= 100 for r in rows)
