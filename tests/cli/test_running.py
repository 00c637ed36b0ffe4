"""What a run may use of the machine is checked before anything is written."""

from __future__ import annotations

import os
import socket
import time
from importlib import metadata
from pathlib import Path

import pytest
from desk import Desk

from harness.cli import running
from harness.cli.running import Machine
from harness.errors import UserError
from harness.pipeline import hardware

GB = 10**9


def _machine(monkeypatch: pytest.MonkeyPatch, devices: int, version: str = "2.13.0+cu130") -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "_devices", lambda: [(f"GPU-{i}", 80 * GB) for i in range(devices)])
    monkeypatch.setattr(metadata, "version", lambda name: version)


@pytest.mark.parametrize("executor", ["ray", "inline"])
def test_more_gpus_than_there_are_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    _machine(monkeypatch, devices=2)
    with pytest.raises(UserError, match="--num-gpus 64: [0-9]+ here"):
        running.resources(Machine(64, 24.0, None, executor))


def test_what_nobody_said_is_asked_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, devices=3)
    found = running.resources(Machine())
    assert (found.num_gpus, found.workers, found.gpu_memory_gb) == (3, 3, 80.0)
    few = running.resources(Machine(num_gpus=1, gpu_memory=24.0))
    assert (few.num_gpus, few.workers, few.gpu_memory_gb) == (1, 1, 24.0)
    none = running.resources(Machine(num_gpus=0))
    assert (none.num_gpus, none.workers, none.gpu_memory_gb) == (0, len(os.sched_getaffinity(0)), None)


def test_gpus_that_torch_was_not_built_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, devices=1, version="2.13.0+cpu")
    with pytest.raises(UserError, match="built for the CPU only"):
        running.resources(Machine(executor="inline"))
    assert running.resources(Machine(num_gpus=0, executor="inline")).num_gpus == 0


def test_any_number_of_gpus_may_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, devices=0)
    assert running.gpus(Machine(num_gpus=8, gpu_memory=80.0)) == (8, 80.0)
    assert running.gpus(Machine(num_gpus=8)) == (8, None)
    assert running.gpus(Machine()) == (0, None)


@pytest.mark.parametrize("chosen", ["NoDevFiles", "0", "GPU-12"])
def test_a_variable_that_names_gpus_where_there_are_none_is_no_matter(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setattr(hardware, "_devices", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert running.resources(Machine()).num_gpus == 0


# Ray that cannot be had is one line, before any work


EVAL = ("eval", "--defense", "none", "--bench", "ten", "--profile", "small")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_cluster_that_was_stopped_is_refused_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    address = f"127.0.0.1:{_free_port()}"
    words = ("--address", address) if way == "option" else ()
    if way == "variable":
        monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    done = desk.run(*EVAL, *words)
    assert time.monotonic() - started < 60
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"harness: no Ray cluster answers at {address} (")
    assert not (desk.root / "runs").exists()


def test_the_inline_executor_asks_no_cluster() -> None:
    assert running.resources(Machine(num_gpus=0, executor="inline", address="127.0.0.1:1")).address is None


@pytest.mark.parametrize("address", ["no-port", "head:port", "head:99999999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=address):
        running.resources(Machine(num_gpus=0, address=address))


def test_a_temporary_folder_too_long_for_sockets_is_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = desk.root / ("long" * 12)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    done = desk.run(*EVAL)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "too long for Ray's sockets" in done.err
    monkeypatch.setenv("RAY_TMPDIR", "/none")
    assert "no folder that can be written" in desk.run(*EVAL).err
    assert not Path(desk.root / "runs").exists()
