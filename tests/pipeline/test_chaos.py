"""Long chaos: kill the driver or any of its workers again and again; the files must come out the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from desk import Desk

WORDS = ("eval", "--defense", "uce,sld-max", "--bench", "ten", "--profile", "small", "--json")
ROUNDS = 6


def _strike(process: subprocess.Popen[str], rng: random.Random) -> None:
    """Kill the driver, or one of its workers."""
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::" in " ".join(p.cmdline())]
    if workers and rng.random() < 0.6:
        rng.choice(workers).kill()
    else:
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_no_sequence_of_kills_changes_the_files(desk: Desk) -> None:
    reference = desk.run(*WORDS, "--executor", "inline", store="reference", out="reference-runs")
    assert reference.code == 0, reference.err
    rng = random.Random(7)
    for _ in range(ROUNDS):
        process = desk.start(*WORDS, "--workers", "2")
        deadline = time.monotonic() + rng.uniform(4, 40)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        if process.poll() is None:
            _strike(process, rng)
            if process.poll() is None and rng.random() < 0.5:
                time.sleep(rng.uniform(0, 5))
                process.kill()
        process.communicate(timeout=300)
    done = desk.run(*WORDS)
    assert done.code == 0, done.err
    assert desk.shards() == desk.shards("reference")
    scores = [Path(d.json["paths"]["scores"]).read_bytes() for d in (done, reference)]
    assert scores[0] == scores[1]
