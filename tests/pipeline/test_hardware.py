"""What there is to compute with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.errors import UserError
from harness.pipeline import hardware
from harness.pipeline.hardware import Hardware, require_gpus, total, visible

DEVICES = [("GPU-aa11", 24), ("GPU-aa22", 80), ("GPU-bb33", 40), ("MIG-cc44", 10)]


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, [24, 80, 40, 10]), ("", []), ("-1", []), ("0", [24]), ("2,0", [40, 24]), ("1, 3", [80, 10]),
        ("NoDevFiles", []),
        ("0,9,1", [24]), ("0,-1,1", [24]), ("GPU-bb", [40]), ("GPU-aa", []), ("GPU-aa2,0", [80, 24]),
        ("MIG-cc44", [10]), ("0,0", []), ("1,GPU-aa22", []), ("٣", []), ("1.0", []),
    ],
)  # fmt: skip
def test_the_variable_leaves_what_cuda_would_see(chosen: str | None, seen: list[int]) -> None:
    assert visible(DEVICES, chosen) == seen


@pytest.mark.parametrize("chosen", ["0", "NoDevFiles", "0,1", "GPU-1234"])
def test_a_machine_without_a_driver_has_no_gpu_whatever_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setattr(hardware, "_devices", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert hardware.local() == Hardware(gpus=0, gpu_memory_gb=None, cores=len(os.sched_getaffinity(0)))


def test_several_machines_are_their_sums_and_their_smallest_gpu() -> None:
    head, small = Hardware(cores=4), Hardware(gpus=2, gpu_memory_gb=24, cores=8)
    large = Hardware(gpus=4, gpu_memory_gb=80)
    assert total([head, small, large]) == Hardware(gpus=6, gpu_memory_gb=24, cores=13)
    assert total([head, small, Hardware(gpus=1)]).gpu_memory_gb is None  # one that nobody could ask
    assert total([head]) == Hardware(cores=4)
    assert total([]).gpus == 0


def test_more_gpus_than_there_are_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_devices", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"--num-gpus 99: \d+ here"):
        require_gpus(99)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"--num-gpus 99: \d+ here \(CUDA_VISIBLE_DEVICES is ''\)"):
        require_gpus(99)
    require_gpus(0)


def test_asking_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from harness.pipeline import hardware; hardware.ask(); "
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
