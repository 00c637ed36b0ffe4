"""What a person sees who leaves a run at once: one line, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("ready", "signals", "said"),
    [
        (False, ["SIGINT"], "interrupted before anything was computed"),
        (False, ["SIGTERM"], "interrupted before anything was computed"),
        (True, ["SIGINT", "SIGINT"], "left at once"),
    ],
)
def test_leaving_at_once_is_one_line_and_exit_code_130(
    tmp_path: Path, ready: bool, signals: list[str], said: str
) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from harness.pipeline.interrupt import Interrupt
interrupt = Interrupt(Path("STOP"), lambda doing: None)
interrupt.ready = {ready}
with interrupt.handled():
    for name in {signals}:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.3)
    time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=15)
    assert done.returncode == 130
    assert done.stderr.startswith("harness: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
