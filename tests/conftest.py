"""Fixtures of several tests: a desk to call the command line from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from desk import Desk
from hypothesis import settings

settings.register_profile("harness", deadline=None)  # a busy machine is no failure
settings.load_profile("harness")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty desk with the benchmark ``ten`` and the profile ``small``."""
    made = Desk(tmp_path)
    made.bench("ten")
    made.profile()
    return made


@pytest.fixture(scope="session")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Desk]:
    """Make desks that outlive a test."""

    def make(name: str) -> Desk:
        made = Desk(tmp_path_factory.mktemp(name))
        made.bench("ten")
        made.profile()
        return made

    return make
