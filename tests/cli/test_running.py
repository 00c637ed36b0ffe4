"""What a run may use of the machine is checked before anything is written."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from harness.cli import running
from harness.errors import UserError


def _machine(monkeypatch: pytest.MonkeyPatch, visible: int, seen_by_torch: int, version: str = "2.13.0+cu130") -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(running, "visible_gpus", lambda: visible)
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: seen_by_torch))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(metadata, "version", lambda name: version)


@pytest.mark.parametrize("executor", ["ray", "inline"])
def test_more_gpus_than_there_are_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    _machine(monkeypatch, visible=0, seen_by_torch=0)
    with pytest.raises(UserError, match="--num-gpus 3: 0 here"):
        running._resources(3, 24.0, None, executor)
    _machine(monkeypatch, visible=2, seen_by_torch=2)
    with pytest.raises(UserError, match="--num-gpus 3: 2 here"):
        running._resources(3, 24.0, None, executor)


def test_the_variable_that_hides_gpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"--num-gpus 1: 0 here \(CUDA_VISIBLE_DEVICES is ''\)"):
        running._resources(1, 24.0, None, "inline")


def test_gpus_that_only_torch_sees_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, visible=0, seen_by_torch=2)
    assert running._resources(2, 24.0, None, "ray").num_gpus == 2


def test_gpus_that_torch_was_not_built_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, visible=1, seen_by_torch=0, version="2.13.0+cpu")
    with pytest.raises(UserError, match="built for the CPU only"):
        running._resources(None, 24.0, None, "inline")
    assert running._resources(0, None, None, "inline").num_gpus == 0


def test_the_gpus_of_a_cluster_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, visible=0, seen_by_torch=0)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert running._resources(8, 80.0, None, "ray").num_gpus == 8
