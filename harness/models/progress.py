"""Progress of a model over the rows it was given: models report it here, and whoever shows it listens.

Without a listener, reporting costs nothing. Nothing here changes what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Listener(Protocol):
    """What receives progress."""

    def rows(self, count: int) -> None:
        """``count`` more rows are done."""
        ...

    def steps(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the current micro-batch are done."""
        ...


_listener: Listener | None = None


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Report progress to ``listener`` while the block runs."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def rows(count: int) -> None:
    """Report ``count`` more rows as done."""
    if _listener is not None:
        _listener.rows(count)


def steps(done: int, total: int) -> None:
    """Report how many steps of the current micro-batch are done."""
    if _listener is not None:
        _listener.steps(done, total)


class Bar:
    """Stands in for the progress bar of a diffusers pipeline and reports its denoising steps."""

    def __init__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> None:
        self._items = list(iterable) if iterable is not None else []
        self._total = total if total is not None else len(self._items)
        self._done = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """``count`` more steps are done."""
        self._done += count
        steps(self._done, self._total)


def follow(pipe: Any) -> None:
    """Make a diffusers pipeline report its steps here instead of drawing a progress bar."""
    pipe.progress_bar = Bar
