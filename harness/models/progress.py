"""How far a model is with the rows it was given, said by what computes and heard by whoever shows it.

Where nobody listens, saying it costs nothing. Nothing here changes what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Listener(Protocol):
    """Who wants to know."""

    def rows(self, count: int) -> None:
        """So many more rows are done."""
        ...

    def steps(self, done: int, total: int) -> None:
        """Of the micro-batch at work, so many steps of so many are done."""
        ...


_listener: Listener | None = None


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` while the block runs."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def rows(count: int) -> None:
    """Say that ``count`` more rows are done."""
    if _listener is not None:
        _listener.rows(count)


def steps(done: int, total: int) -> None:
    """Say how many steps of the micro-batch at work are done."""
    if _listener is not None:
        _listener.steps(done, total)


class Bar:
    """In place of the progress bar that a diffusers pipeline draws over its denoising steps."""

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
        """So many more steps are done."""
        self._done += count
        steps(self._done, self._total)


def follow(pipe: Any) -> None:
    """Have a diffusers pipeline say its steps here, and draw no bar."""
    pipe.progress_bar = Bar
