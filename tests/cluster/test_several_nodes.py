"""A run on a real Ray of several nodes, raylets on this machine: work spreads, nodes are lost, one joins."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from desk import PROMPTS, Desk

WORDS = ("eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--json")
STORE_BYTES = 80 * 2**20  # of each node's objects: only tickets pass
_STARTS = 3
PATIENCE_S = 600  # of a busy machine; a quiet one needs seconds


class Nodes:
    """Ray's head, which takes no work, and nodes of one CPU each that can be added and killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}
        self._start(num_cpus=0, include_dashboard=False)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, name: str) -> None:
        self._nodes[name] = self._start(num_cpus=1)

    def _start(self, **arguments: Any) -> Any:
        """A node; Ray gives a raylet 30 s to appear, which a busy machine may need more than once."""
        for left in reversed(range(_STARTS)):
            try:
                return self._cluster.add_node(object_store_memory=STORE_BYTES, **arguments)
            except Exception:
                if not left:
                    raise
        raise AssertionError("not reached")

    def kill(self, name: str) -> None:
        """As a machine that loses its power: no word to anybody."""
        raylet = self._raylet(name)
        workers = raylet.children(recursive=True)
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)
        for process in [raylet, *workers]:
            if process.is_running():
                process.kill()
        psutil.wait_procs(workers, timeout=30)

    def workers(self, name: str) -> set[int]:
        """Processes of the node that run an actor of the harness."""
        found = set()
        for process in self._raylet(name).children():
            try:
                if "ray::" in (title := " ".join(process.cmdline())) and "Map" in title:
                    found.add(process.pid)
            except psutil.Error:  # it just left
                continue
        return found

    def _raylet(self, name: str) -> psutil.Process:
        return psutil.Process(self._nodes[name].all_processes["raylet"][0].process.pid)

    def shut_down(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # nodes of a cluster have the package installed
    made = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shut_down()


def _wait(process: subprocess.Popen[str], reached: Any) -> None:
    """Until ``reached()`` is true; a run that ends before has failed."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run does not get so far: {process.communicate()[1]}")
        time.sleep(0.1)


def _inodes(desk: Desk) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in desk.store.glob("*/*/*.parquet")}


def _notes(desk: Desk) -> list[dict[str, Any]]:
    """What the workers noted of each shard that they finished: process, seconds, workers that it cost before."""
    lines = [line for path in desk.out.glob("*/log/*.jsonl") for line in path.read_text().splitlines()]
    return [note for note in map(json.loads, lines) if "deaths" in note]


def _many(desk: Desk, times: int) -> None:
    prompts = [f"{prompt}, {i}" for i in range(times) for prompt in PROMPTS]
    desk.bench("ten", prompts)
    desk.profile(shard_rows=2)


@pytest.mark.ray
@pytest.mark.slow
def test_work_spreads_a_lost_node_costs_what_it_held_and_a_new_one_is_used(
    desk: Desk, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _many(desk, 2)
    for name in ("a", "b"):
        nodes.add(name)
    run = desk.start(*WORDS, "--workers", "2")
    _wait(run, lambda: nodes.workers("a") and nodes.workers("b"))  # one actor each: work spreads
    held = {*nodes.workers("a"), *nodes.workers("b")}
    nodes.add("c")  # while the workers still load their models
    _wait(run, lambda: len(_inodes(desk)) >= 4)
    before = _inodes(desk)
    for name in ("a", "b"):
        nodes.kill(name)
    _wait(run, lambda: nodes.workers("c"))  # all that is left of the work is done by the node that joined
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    after = _inodes(desk)
    assert {path: after[path] for path in before} == before  # what was published was not computed again
    assert len(after) > len(before)
    assert not held & {p.pid for p in psutil.process_iter()}
    notes = _notes(desk)
    assert sum(note["deaths"] for note in notes) <= len(held)  # each lost worker had one shard at hand
    assert {note["pid"] for note in notes} & held
    assert {note["pid"] for note in notes} - held
    monkeypatch.delenv("RAY_ADDRESS")
    reference = desk.run(*WORDS, "--executor", "inline", store="reference", out="reference-runs")
    assert reference.code == 0, reference.err
    assert desk.shards() == desk.shards("reference")
