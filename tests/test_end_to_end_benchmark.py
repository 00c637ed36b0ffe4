"""The benchmark of a GPU runs through on a CPU with narrow models, and claims nothing then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import Machine, Timed

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_stage_is_timed_with_narrow_models_and_no_bar_is_measured() -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.end_to_end", "--narrow", "--json", "--batches", "1", "2",
            "--search-batches", "1", "2",
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    timed = {(row["stage"], row["images"]) for row in found["rows"]}
    assert timed == {
        *((stage, n) for stage in ("draw", "caption", "search") for n in (1, 2)), ("score (nudenet, one core)", 1),
    }  # fmt: skip
    assert all(row["seconds"] > 0 for row in found["rows"] if row["stage"] != "draw")
    assert set(found["bars"].values()) == {"not measured"}


def test_bars_compare_what_a_gpu_gave() -> None:
    import torch

    rows = [
        Timed("draw", 1, 1.0, 5), Timed("draw", 8, 0.5, 9), Timed("caption", 1, 2.0, 20), Timed("caption", 8, 0.4, 30),
        Timed("search", 1, 9.0, 2, 0.001), Timed("search", 64, 0.3, 3, 0.2),
    ]  # fmt: skip
    machine = Machine("cuda", torch.bfloat16, False, 790e12, 5, 50)
    bars = end_to_end.bars(rows, 150.0, machine)
    assert bars == {
        "ReSafe batched": "1.20 s an image, 1.5 or less: met",
        "ReSafe latency": "12.00 s for one image",
        "search speed-up": "150 times the published loop, 200 or more: missed",
        "search share": "20.0% of the peak, 10% or more: met",
    }
