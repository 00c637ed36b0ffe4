"""The benchmark runs and finds identical detections; what it times is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_runs_as_a_file_and_finds_identical_detections() -> None:
    script = ROOT / "benchmarks" / "nudenet.py"
    done = subprocess.run(
        [sys.executable, str(script), "--images", "2", "--rounds", "1"], capture_output=True, text=True, check=True
    )
    assert "Identical detections: 2/2 images" in done.stdout
    assert done.stdout.count("\n|") == 3
