"""What progress says where nobody looks at it live."""

from __future__ import annotations

import io

import pytest

from harness.cli.progress import Display
from harness.pipeline.progress import Snapshot, StageProgress

AT_WORK = {"generate": StageProgress(3, 64)}


def test_a_notice_is_said_at_once_and_once_whatever_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Display() as display:
        display(Snapshot(doing="generate: row 3 of 64", stages=AT_WORK))
        assert "stopping" not in stream.getvalue()
        for row in (4, 5, 6):
            display(Snapshot(doing=f"generate: row {row} of 64", notice="stopping: one more stage", stages=AT_WORK))
            assert stream.getvalue().count("stopping: one more stage") == 1


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Display(quiet=True) as display:
        display(Snapshot(doing="generate", notice="stopping", stages=AT_WORK))
    assert stream.getvalue() == ""
