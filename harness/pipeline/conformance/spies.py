"""What watches a defense while rules are tried: who calls the pipeline, which texts are read; and a planted fault."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.defenses.base import Defense

_BAD_CALL = 3  # of the denoiser, within a call of the pipeline: state has gathered by then


class PlantedError(Exception):
    """A fault that a rule planted."""


class Watched(Defense):
    """A defense that says which prompts are being drawn."""

    def __init__(self, defense: Defense) -> None:
        self._defense = defense
        self.prompts: tuple[str, ...] = ()
        self.calls = 0  # of the denoiser, since the prompts were announced

    def attach(self, pipe: Any) -> None:
        self._defense.attach(pipe)

    def detach(self, pipe: Any) -> None:
        self._defense.detach(pipe)

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self.prompts, self.calls = tuple(prompts), 0
        return self._defense.begin(prompts)

    def note(self, guidance: float) -> str | None:
        return self._defense.note(guidance)


@contextmanager
def failing(pipe: Any, watched: Watched, prompt: str) -> Iterator[None]:
    """Inside, drawing a micro-batch with ``prompt`` raises ``PlantedError`` at one of the denoiser's calls."""
    from harness.defenses.denoiser import denoiser

    def count(module: Any, arguments: Any) -> None:
        watched.calls += 1
        if prompt in watched.prompts and watched.calls == _BAD_CALL:
            raise PlantedError("planted by a rule")

    hook = denoiser(pipe).register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def on_calls(pipe: Any) -> Iterator[list[Sequence[str]]]:
    """The prompts of every call of the pipeline inside, whoever makes it."""
    calls: list[Sequence[str]] = []

    def told(arguments: dict[str, Any], positional: tuple[Any, ...]) -> None:
        prompt = arguments.get("prompt", positional[0] if positional else ())
        calls.append([prompt] if isinstance(prompt, str) else list(prompt or ()))

    with _overheard(pipe, told):
        yield calls


@contextmanager
def on_texts(pipe: Any) -> Iterator[list[str]]:
    """Every text that the pipeline's tokenizers are given inside."""
    texts: list[str] = []

    def told(arguments: dict[str, Any], positional: tuple[Any, ...]) -> None:
        given = arguments.get("text", positional[0] if positional else ())
        texts.extend([given] if isinstance(given, str) else [t for t in given or () if isinstance(t, str)])

    with _overheard(pipe.tokenizer, told):
        yield texts


@contextmanager
def _overheard(called: Any, told: Callable[[dict[str, Any], tuple[Any, ...]], None]) -> Iterator[None]:
    """Inside, ``told`` hears the arguments of every call of an object."""
    cls = type(called)
    plain = cls.__call__

    @functools.wraps(plain)
    def hearing(self: Any, *args: Any, **kwargs: Any) -> Any:
        told(kwargs, args)
        return plain(self, *args, **kwargs)

    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    called.__class__ = type(cls.__name__, (cls,), {"__call__": hearing, **same})
    try:
        yield
    finally:
        called.__class__ = cls
