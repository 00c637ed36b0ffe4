"""Runs' status files: what is written while a run lives, and what is read after it died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.pipeline import run_status
from harness.pipeline.outcome import Outcome
from harness.pipeline.progress import Snapshot, StageProgress
from harness.pipeline.run_status import RunStatus
from harness.store.holder import EXPIRY_S, Holder

SEEN = Snapshot(
    doing="generate: row 2 of 4 of a shard",
    stages={"generate": StageProgress(2, 8, 0.5)},
    eta_s=3.0,
    cells=(1, 4),
    errors=2,
)


def _silent(_seen: Snapshot) -> None:
    """No display."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def _status(holder: Holder, **more: object) -> RunStatus:
    now = time.time()
    return RunStatus(run="r", command="harness eval", holder=holder, begun=now, updated=now, **more)  # type: ignore[arg-type]


def test_what_a_run_says_is_read_back(tmp_path: Path) -> None:
    with run_status.kept(tmp_path, "harness eval x") as keeper:
        keeper.heard(_silent)(SEEN)
        keeper.write()
        found = run_status.read(tmp_path)
        assert found is not None
        assert (found.state, found.doing, found.cells, found.errors, found.eta_s) == (
            "working",
            SEEN.doing,
            (1, 4),
            2,
            3.0,
        )
        assert found.stages == SEEN.stages
        assert found.rows == (2, 8)
        assert found.holder == Holder.here()
        keeper.finished(None, 2, complete=True)
    ended = run_status.read(tmp_path)
    assert ended is not None
    assert (ended.state, ended.errors, ended.command) == ("done", 2, "harness eval x")
    assert RunStatus.from_json(json.loads(json.dumps(ended.to_json()))) == ended


@pytest.mark.parametrize(
    ("statuses", "state"),
    [({"stopped": 1, "ok": 2}, "stopped"), ({"failed": 1}, "failed"), ({"incomplete": 3}, "incomplete")],
)
def test_how_tickets_ended_is_how_the_run_did(tmp_path: Path, statuses: dict[str, int], state: str) -> None:
    with run_status.kept(tmp_path, "x") as keeper:
        keeper.finished(Outcome(statuses=Counter(statuses), details=["generate: why"]), 0, complete=False)
    found = run_status.read(tmp_path)
    assert found is not None
    assert (found.state, found.details) == (state, ("generate: why",))


def test_what_ended_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError), run_status.kept(tmp_path, "x"):
        raise UserError("no such thing")
    found = run_status.read(tmp_path)
    assert found is not None
    assert (found.state, found.details) == ("failed", ("no such thing",))


def test_a_killed_process_is_said_to_be_dead(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    run_status.announce(tmp_path, _status(Holder.of(sleeper.pid), state="working"))
    alive = run_status.read(tmp_path)
    assert alive is not None
    assert alive.state == "working"
    sleeper.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (
        found := run_status.read(tmp_path)
    ) is not None and found.state != "dead":  # not waited for: a zombie is dead
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_number_that_another_process_took_over_is_no_life(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    earlier = Holder(Holder.here().host, sleeper.pid, "another boot 1")
    run_status.announce(tmp_path, _status(earlier))
    found = run_status.read(tmp_path)
    assert found is not None
    assert found.state == "dead"


def test_another_host_is_believed_for_a_while(tmp_path: Path) -> None:
    run_status.announce(tmp_path, _status(Holder("elsewhere", 1, "x"), state="working"))
    states = []
    for age in (0, EXPIRY_S + 5):
        then = time.time() - age
        os.utime(tmp_path / run_status.FILE, (then, then))
        found = run_status.read(tmp_path)
        assert found is not None
        states.append(found.state)
    assert states == ["working", "dead"]


def test_stop_touches_the_stop_file_of_a_run_that_computes(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    status = _status(Holder.of(sleeper.pid), state="working", stages={"generate": StageProgress(0, 4)})
    run_status.announce(tmp_path, status)
    run_status.stop(tmp_path)
    assert (tmp_path / "STOP").exists()
    found = run_status.read(tmp_path)
    assert found is not None
    assert found.state == "stopping"
    assert sleeper.poll() is None


@pytest.mark.parametrize("at_once", [False, True])
def test_stop_ends_a_run_that_has_not_begun_or_shall_end_now(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], at_once: bool
) -> None:
    stages = {"generate": StageProgress(0, 4)} if at_once else {}
    run_status.announce(
        tmp_path, _status(Holder.of(sleeper.pid), state="working" if at_once else "starting", stages=stages)
    )
    run_status.stop(tmp_path, at_once)
    assert sleeper.wait(timeout=20) == -signal.SIGTERM


def test_nothing_is_asked_of_a_run_that_has_ended(tmp_path: Path) -> None:
    with run_status.kept(tmp_path, "x") as keeper:
        keeper.finished(None, 0, complete=True)
    run_status.stop(tmp_path)
    assert not (tmp_path / "STOP").exists()


def test_a_run_is_called_by_how_its_name_begins(tmp_path: Path) -> None:
    for name in ("uce_i2p_1", "uce_i2p_2", "rece_coco_3"):
        run_status.announce(tmp_path / name, _status(Holder.here()))
    assert run_status.resolve("rece", tmp_path) == tmp_path / "rece_coco_3"
    assert run_status.resolve(str(tmp_path / "uce_i2p_1"), tmp_path) == tmp_path / "uce_i2p_1"
    with pytest.raises(UserError, match="2 runs begin with 'uce'"):
        run_status.resolve("uce", tmp_path)
    with pytest.raises(UserError, match="did you mean 'rece_coco_3'"):
        run_status.resolve("recf_coco_3", tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"holder": 3}'])
def test_a_file_that_is_none_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / run_status.FILE).write_text(text)
    assert run_status.read(tmp_path) is None
