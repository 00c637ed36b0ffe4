"""Two runs on one store: shared where they write nothing in common, else refused with the holder's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from harness.errors import UserError
from harness.store.leases import EXPIRY_S, FOLDER, lease

HOLDER = """import sys
from pathlib import Path
from harness.store.leases import lease
with lease(Path(sys.argv[1]), None if sys.argv[2] == "*" else sys.argv[2].split()):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _held(root: Path, writes: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``writes``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), writes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


def _take(root: Path, writes: list[str] | None) -> None:
    with lease(root, writes):
        pass


def test_what_another_run_writes_is_refused_and_the_rest_is_shared(tmp_path: Path) -> None:
    with _held(tmp_path, "generate/a score/b") as process:
        _take(tmp_path, ["generate/b"])
        _take(tmp_path, [])
        with pytest.raises(UserError, match=rf"in use by another run \(.*process {process.pid}; it writes score/b\)"):
            _take(tmp_path, ["draw/c", "score/b"])
        with pytest.raises(UserError, match="it writes generate/a, score/b"):
            _take(tmp_path, None)
        process.kill()
        process.wait()
        _take(tmp_path, None)
    assert list((tmp_path / FOLDER).glob("*.json")) == []


def test_who_holds_everything_shares_nothing(tmp_path: Path) -> None:
    with _held(tmp_path, "*"), pytest.raises(UserError, match="it writes all of it"):
        _take(tmp_path, ["generate/a"])
    _take(tmp_path, ["generate/a"])


def _of_another_host(root: Path, age_s: float) -> Path:
    path = root / FOLDER / "0.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "writes": ["generate/a"]}))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_host_that_died_holds_nothing_for_long(tmp_path: Path) -> None:
    path = _of_another_host(tmp_path, age_s=5)
    with pytest.raises(UserError, match="elsewhere, process 1"):
        _take(tmp_path, ["generate/a"])
    path = _of_another_host(tmp_path, age_s=EXPIRY_S + 5)
    _take(tmp_path, ["generate/a"])
    assert not path.exists()


def test_a_lease_is_renewed_while_its_run_lives(tmp_path: Path) -> None:
    with lease(tmp_path, ["generate/a"], renew_s=0.05):
        (path,) = (tmp_path / FOLDER).glob("*.json")
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 1e9 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(self: FileLock, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lease(tmp_path, ["generate/a"]):
        _take(tmp_path, ["generate/b"])
        with pytest.raises(UserError, match="in use by another run"):
            _take(tmp_path, ["generate/a"])
