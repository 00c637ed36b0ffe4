"""What scorers share: cutting images into full micro-batches, and error codes for images that cannot be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import RowError
from harness.models import progress
from harness.scorers import _find

Image = NDArray[np.uint8]  # (height, width, 3), RGB


Given = TypeVar("Given")


Prepared = TypeVar("Prepared")


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
        images: any number of (height, width, 3) uint8 images.
        prepare: preprocesses one image, or raises RowError with the code for its row.
        compute: maps ``size`` preprocessed images to as many rows of column values.
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
    """As ``in_micro_batches``, of images and their references; an image without one has no score and no error.

    Args:
        stem: the scorer, whose columns are filled.
        images: any number of (height, width, 3) uint8 images.
        references: as many, or None.
        prepare: preprocesses an image and its reference, or raises RowError. It is not called where either is no
            image; such a row has the code ``not-an-image`` or ``reference-not-an-image``.
        compute: maps ``size`` preprocessed pairs to as many rows of column values.
        size: the micro-batch.

    Raises:
        ValueError: other numbers of images and references.
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
    """As ``in_micro_batches``, of images and their texts; an image without one has no score and no error.

    An empty text is a text.

    Raises:
        ValueError: other numbers of images and texts.
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
        progress.rows(len(part))
    return {name: [row.get(name) for row in rows] for name in (*_find.module(stem).COLUMNS, error)}


def checked(image: Image) -> Image:
    """``image`` itself, after checking that it is one.

    Raises:
        RowError: ``not-an-image``: any other shape than (height, width, 3), any other type than uint8, no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise RowError("not-an-image", f"{image.shape} {image.dtype}")
    return image
