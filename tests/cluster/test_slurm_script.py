"""cluster/slurm.sbatch as it is, run by bash: a stand-in for srun starts the workers' raylet on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import Desk

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster/slurm.sbatch"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it, apart from those of any other Ray of the machine."""
    folder = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(desk: Desk, short: Path) -> dict[str, str]:
    """That of a Slurm job: the environment's programs, srun and scontrol on the path."""
    for name, module in (("ray", "ray.scripts.scripts"), ("harness", "harness")):
        _program(short / "venv/bin" / name, f'exec {sys.executable} -m {module} "$@"')
    _program(short / "slurm/srun", f'echo "$@" >> {short}/srun.log\n[ "$1" = --het-group=1 ] && shift\nexec "$@"')
    _program(short / "slurm/scontrol", f'echo "$@" >> {short}/scontrol.log')
    return {
        **desk.environment(),
        "PATH": f"{short}/slurm:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HARNESS_VENV": f"{short}/venv",
        "HARNESS_SHARED": str(desk.root / "shared"),
        "HARNESS_HEAD_IP": "127.0.0.1",
        "HARNESS_PORT": str(_free_port()),
        "RAY_TMPDIR": str(short),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "SLURM_JOB_ID": "7",
    }


@pytest.mark.ray
@pytest.mark.slow
def test_the_script_starts_head_and_workers_runs_the_command_and_ends_them(desk: Desk, short: Path) -> None:
    command = [
        "harness",
        "eval",
        "--defense",
        "none",
        "--bench",
        "ten",
        "--profile",
        "small",
        "--cards",
        str(desk.cards),
    ]
    done = subprocess.run(
        ["bash", str(SCRIPT), *command, "--cards", str(desk.cards), "--workers", "1", "--num-gpus", "0"],
        env=_environment(desk, short), cwd=desk.root, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ten (nudity), ASR" in done.stdout
    started = (short / "srun.log").read_text()
    assert started.startswith("--het-group=1 ray start --address=127.0.0.1:")
    assert list((desk.root / "shared/store").glob("*/*/*.parquet"))
    assert list((desk.root / "shared/runs").glob("*/scores.parquet"))
    assert not (short / "scontrol.log").exists()  # nobody asked for the job to be queued again
    left = subprocess.run(["pgrep", "-f", str(short)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_without_an_environment_it_says_what_is_missing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HARNESS_VENV"}
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "say where the virtual environment is" in done.stderr
