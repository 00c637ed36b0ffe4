"""Fixtures of the judges' tests: a finished run, and a server to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer
from made_run import MadeRun


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """Six rows of a benchmark about stars, four places, one row without regenerations."""
    return MadeRun(tmp_path).add("ten", "nudity", 6, lost=[3])


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A server that always answers "1"."""
    with ChatServer(lambda request: "1").running() as started:
        yield started
