"""Scorers turn pictures into raw numbers; verdicts are a policy's, at report time.

One module is one scorer, and its file's stem is its name: ``harness/scorers/nudenet.py`` is ``nudenet``.
A module becomes a scorer by having these (no list to enter it in):

    COLUMNS: dict[str, pa.DataType]       # its raw columns, named <stem>_..., in order
    def load(params) -> Scorer            # the only place that imports a model's library
    def weights(params) -> list[Path]     # files whose content its numbers depend on
    LIBRARIES = ("onnxruntime",)          # distributions whose version they depend on
    MODULES = ("harness.shapes.oracle",)  # other sources they depend on; may be left out
    MICRO_BATCH = 1                       # pictures a model sees at once
    PAIR = False                          # whether it compares with a reference picture
    TEXT = False                          # whether it reads the picture's prompt; may be left out

A picture that cannot be scored costs no other picture its scores: its columns are None and its code
stands in the column ``<stem>_error``.

A scorer is called with the pictures alone; where PAIR is true, with the pictures and a reference of each
(another picture, or None where there is none); where TEXT is true, with the pictures and a text of each (or
None). A picture beside a None has null columns and no error. A pair scorer's columns do not say what the
reference is (``lpips_alex``); the score stage names it (``lpips_alex@same/base``). None is both.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.cardfile import show
from harness.errors import RowError, UserError, nearest

REFERENCES = ("same/base", "none/base")  # of a pair scorer: before regeneration; undefended
Image = NDArray[np.uint8]  # (height, width, 3), RGB
Given = TypeVar("Given")
Prepared = TypeVar("Prepared")


class Scorer(Protocol):
    """A loaded scorer."""

    def __call__(self, images: Sequence[Image], /, *beside: Sequence[Any]) -> dict[str, list[Any]]:
        """One list per column of the module's COLUMNS and ``<stem>_error``, one value per image.

        Args:
            images: the pictures to score.
            beside: nothing; or for a pair scorer one sequence, each picture's reference (Image or None); or for a
                scorer that reads prompts one sequence, each picture's text (str or None).

        Raises:
            ValueError: another number of references or texts than of pictures.
        """
        ...


def names() -> list[str]:
    """Every scorer's name."""
    stems = (found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return sorted(stem for stem in stems if hasattr(importlib.import_module(f"{__name__}.{stem}"), "COLUMNS"))


def summary(stem: str) -> str:
    """What the scorer is, the first line of its module's docstring."""
    return (_module(stem).__doc__ or "").partition("\n")[0]


def load(stem: str, params: Mapping[str, Any] | None = None) -> Scorer:
    """The scorer ``stem`` with its model in memory.

    Raises:
        UserError: no such scorer, a parameter it does not know, its weights or library missing.
    """
    scorer: Scorer = _module(stem).load(dict(params or {}))
    return scorer


def columns(stem: str) -> dict[str, pa.DataType]:
    """The scorer's raw columns in order, each ``<stem>_...``; imports no model's library."""
    return dict(_module(stem).COLUMNS)


def weights(stem: str, params: Mapping[str, Any] | None = None) -> list[Path]:
    """Files whose content the scores depend on; imports no model's library."""
    return list(_module(stem).weights(dict(params or {})))


def libraries(stem: str) -> tuple[str, ...]:
    """Distributions whose versions the scores depend on."""
    return tuple(_module(stem).LIBRARIES)


def modules(stem: str) -> tuple[str, ...]:
    """Other modules of ours whose source the scores depend on."""
    return tuple(getattr(_module(stem), "MODULES", ()))


def pair(stem: str) -> bool:
    """Whether the scorer compares each picture with a reference picture."""
    return bool(_module(stem).PAIR)


def text(stem: str) -> bool:
    """Whether the scorer reads each picture's prompt."""
    return bool(getattr(_module(stem), "TEXT", False))


def options(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A scorer's ``defaults`` with ``params`` over them.

    Raises:
        UserError: a parameter the scorer does not have.
    """
    for key in params:
        if key not in defaults:
            raise UserError(
                f"scorer {stem!r} has no parameter {key!r}{nearest(key, defaults)} (it has: {', '.join(defaults)})"
            )
    return {**defaults, **params}


def in_micro_batches(
    stem: str,
    images: Sequence[Image],
    prepare: Callable[[Image], Prepared],
    compute: Callable[[list[Prepared]], list[dict[str, Any]]],
    size: int,
) -> dict[str, list[Any]]:
    """Scores of ``images``, ``size`` at a time; a last, partial micro-batch is padded to full size.

    Args:
        stem: the scorer, whose columns are filled.
        images: any number of (height, width, 3) uint8 pictures.
        prepare: makes one picture ready, or raises RowError.
        compute: ``size`` prepared pictures to as many rows of columns.
        size: the micro-batch.
    """
    return _scored(stem, images, lambda image: prepare(checked(image)), compute, size)


def pairs_in_micro_batches(
    stem: str,
    images: Sequence[Image],
    references: Sequence[Image | None],
    prepare: Callable[[Image, Image], Prepared],
    compute: Callable[[list[Prepared]], list[dict[str, Any]]],
    size: int,
) -> dict[str, list[Any]]:
    """As ``in_micro_batches``, of pictures and their references; a picture without one has no score and no error.

    Args:
        stem: the scorer, whose columns are filled.
        images: any number of (height, width, 3) uint8 pictures.
        references: as many, or None.
        prepare: makes a picture and its reference ready, or raises RowError. What is no picture has not come so far:
            its row has the code ``not-a-picture``, or ``reference-not-a-picture``.
        compute: ``size`` prepared pairs to as many rows of columns.
        size: the micro-batch.

    Raises:
        ValueError: other numbers of pictures and references.
    """
    pairs = [(i, r) if r is not None else None for i, r in zip(images, references, strict=True)]

    def ready(both: tuple[Image, Image]) -> Prepared:
        image, reference = checked(both[0]), both[1]
        try:
            checked(reference)
        except RowError as problem:
            raise RowError(f"reference-{problem.code}", str(problem)) from problem
        return prepare(image, reference)

    return _scored(stem, pairs, ready, compute, size)


def texts_in_micro_batches(
    stem: str,
    images: Sequence[Image],
    texts: Sequence[str | None],
    prepare: Callable[[Image, str], Prepared],
    compute: Callable[[list[Prepared]], list[dict[str, Any]]],
    size: int,
) -> dict[str, list[Any]]:
    """As ``in_micro_batches``, of pictures and their texts; a picture without one has no score and no error.

    An empty text is a text.

    Raises:
        ValueError: other numbers of pictures and texts.
    """
    pairs = [(i, t) if t is not None else None for i, t in zip(images, texts, strict=True)]
    return _scored(stem, pairs, lambda both: prepare(checked(both[0]), both[1]), compute, size)


def _scored(
    stem: str,
    inputs: Sequence[Given | None],
    prepare: Callable[[Given], Prepared],
    compute: Callable[[list[Prepared]], list[dict[str, Any]]],
    size: int,
) -> dict[str, list[Any]]:
    """Scores of ``inputs`` by column, ``size`` at a time; none for a None, a code for one that is not fit."""
    error = f"{stem}_error"
    rows: list[dict[str, Any]] = [{} for _ in inputs]
    ready: list[tuple[dict[str, Any], Prepared]] = []
    for row, given in zip(rows, inputs, strict=True):
        if given is None:
            continue
        try:
            ready.append((row, prepare(given)))
        except RowError as problem:
            row[error] = problem.code
    for start in range(0, len(ready), size):
        part = ready[start : start + size]
        batch = [item for _, item in part]
        for (row, _), values in zip(part, compute(batch + batch[:1] * (size - len(batch))), strict=False):
            row.update(values)
    return {name: [row.get(name) for row in rows] for name in (*columns(stem), error)}


def checked(image: Image) -> Image:
    """``image`` if it is a picture.

    Raises:
        RowError: ``not-a-picture``: any other shape than (height, width, 3), any other type than uint8, no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise RowError("not-a-picture", f"{image.shape} {image.dtype}")
    return image


def _module(stem: str) -> ModuleType:
    """The module of a scorer.

    Raises:
        UserError: with the nearest name.
    """
    found = importlib.util.find_spec(f"{__name__}.{stem}") if stem.isidentifier() else None
    module = importlib.import_module(f"{__name__}.{stem}") if found else None
    if module is None or not hasattr(module, "COLUMNS"):
        known = names()
        raise UserError(
            f"unknown scorer {stem!r}{nearest(stem, known)} "
            f"(there are: {', '.join(known)}; see {show(Path(__file__).parent)})"
        )
    return module
