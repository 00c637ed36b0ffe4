"""The watchdog by what it does to a process: ends it, or leaves it alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = (
    "import sys, time\nfrom pathlib import Path\nfrom harness.pipeline.stages.watchdog import alive, patient, watched\n"
)
TRACE = "Path(sys.argv[1])"


def run(tmp_path: Path, body: str) -> tuple[int, str | None]:
    """Exit status of a process that runs ``body``, and what its trace file holds; None where there is none."""
    trace = tmp_path / "hangs" / "trace.txt"
    done = subprocess.run([sys.executable, "-c", BEGIN + body, str(trace)], check=False, timeout=120)
    return done.returncode, trace.read_text() if trace.exists() else None


def test_silence_ends_the_process_and_leaves_every_stack(tmp_path: Path) -> None:
    code, trace = run(tmp_path, f"with watched(0.3, {TRACE}):\n    time.sleep(60)\n")
    assert code != 0
    assert trace is not None
    assert "in <module>" in trace


@pytest.mark.parametrize(
    "body",
    [
        f"with watched(1.0, {TRACE}):\n    for _ in range(20):\n        time.sleep(0.1)\n        alive()\n",
        f"with watched(0.3, {TRACE}), patient():\n    time.sleep(1)\n",
        f"with watched(0.3, {TRACE}):\n    with watched(60, {TRACE}.with_name('inner')):\n        time.sleep(1)\n",
        f"with watched(0.3, {TRACE}):\n    pass\ntime.sleep(1)\n",
        f"try:\n    with watched(0.3, {TRACE}):\n        raise KeyError\nexcept KeyError:\n    time.sleep(1)\n",
    ],
    ids=["steps", "waiting", "a-clock-of-its-own", "after-it", "after-an-error"],
)
def test_what_works_or_waits_lives(tmp_path: Path, body: str) -> None:
    assert run(tmp_path, body) == (0, None)


@pytest.mark.parametrize("inner", ["patient()", f"watched(60, {TRACE}.with_name('inner'))"])
def test_the_outer_clock_runs_on_after_an_inner_block(tmp_path: Path, inner: str) -> None:
    code, trace = run(tmp_path, f"with watched(0.3, {TRACE}):\n    with {inner}:\n        pass\n    time.sleep(60)\n")
    assert code != 0
    assert trace
