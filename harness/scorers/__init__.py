"""Scorers turn images into raw numbers; policies turn these into verdicts later, at report time.

One module is one scorer, and its file's stem is its name: ``harness/scorers/nudenet.py`` is ``nudenet``.
A module becomes a scorer by defining these, without being registered; one of another package, by an entry point of the
group ``harness.scorers`` that gives its name (``harness.cards.plugins``):

    COLUMNS: dict[str, pa.DataType]       # its raw columns, named <stem>_..., in order
    def load(params) -> Scorer            # the only place that imports a model's library
    def weights(params) -> list[Path]     # files whose content its numbers depend on
    LIBRARIES = ("onnxruntime",)          # distributions whose version they depend on
    MICRO_BATCH = 1                       # images a model sees at once
    PAIR = False                          # whether it compares with a reference image
    TEXT = False                          # whether it reads the image's prompt; may be left out
    HUB = (("source", "revision"),)       # parameters that name a hub's models and their commits; may be left out
    OWN_FILE = "prompts"                  # parameter naming a file that the user brings; may be left out. Then also
    def check_own_file(path) -> None      # raises UserError where the file is none of its kind, warns of one unknown

An image that cannot be scored costs no other image its scores: its columns are None and its code
stands in the column ``<stem>_error``.

A scorer is called with a batch of images; where PAIR is true, also with a reference image for each (or None where
there is none); where TEXT is true, also with a text for each (or None). An image whose reference or text is None has
null columns and no error. A pair scorer's columns do not say what the
reference is (``lpips_alex``); the score stage names it (``lpips_alex@same/base``). No scorer sets both PAIR and TEXT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from harness.cards.plugins import Plugin
from harness.cards.weights_ref import WeightsRef
from harness.errors import UserError, nearest
from harness.scorers import _find
from harness.scorers.batching import Image

# What transformers reads of a model that is one file; the second where a repository has no safetensors, as that of
# CLIP ViT-B/16: transformers reads it as tensors only (weights_only), never unpickling anything else.
_FILES_OF_A_MODEL = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors|model.safetensors.index.json|pytorch_model.bin",
    "model-*.safetensors",  # shards
    "*.json",
    "*.txt",
)
REFERENCES = ("same/base", "none/base")  # of a pair scorer: before regeneration; undefended


class Scorer(Protocol):
    """A loaded scorer."""

    def __call__(self, images: Sequence[Image], /, *beside: Sequence[Any]) -> dict[str, list[Any]]:
        """One list per column of the module's COLUMNS and ``<stem>_error``, one value per image.

        Args:
            images: the images to score.
            beside: nothing; or for a pair scorer one sequence, each image's reference (Image or None); or for a
                scorer that reads prompts one sequence, each image's text (str or None).

        Raises:
            ValueError: another number of references or texts than of images.
        """
        ...


def names() -> list[str]:
    """Every scorer's name, ours and those of installed packages that can be used."""
    return _find.names()


def faults() -> dict[str, str]:
    """Why scorers that installed packages bring cannot be used, by name."""
    return _find.faults()


def plugin(stem: str) -> Plugin | None:
    """What brings the scorer; None where it is one of our own.

    Raises:
        UserError: several packages bring it, or it is one of our own too.
    """
    return _find.plugin(stem)


def module_name(stem: str) -> str:
    """The dotted name of the scorer's module."""
    brought = _find.plugin(stem)
    return f"{__name__}.{stem}" if brought is None else brought.target


def summary(stem: str) -> str:
    """The first line of the scorer module's docstring."""
    return (_find.module(stem).__doc__ or "").partition("\n")[0]


def load(stem: str, params: Mapping[str, Any] | None = None) -> Scorer:
    """The scorer ``stem`` with its model in memory.

    Raises:
        UserError: no such scorer, a parameter it does not know, its weights or library missing.
    """
    scorer: Scorer = _find.module(stem).load(dict(params or {}))
    return scorer


def columns(stem: str) -> dict[str, pa.DataType]:
    """The scorer's raw columns in order, each ``<stem>_...``; imports no model's library."""
    return dict(_find.module(stem).COLUMNS)


def weights(stem: str, params: Mapping[str, Any] | None = None) -> list[Path]:
    """Files whose content the scores depend on; imports no model's library."""
    return list(_find.module(stem).weights(dict(params or {})))


def hub_weights(stem: str, params: Mapping[str, Any] | None = None) -> tuple[WeightsRef, ...]:
    """References to the hub models that a scorer reads; empty where its weights come from a path, package or library.

    Args:
        stem: the scorer.
        params: as the profile sets them.

    Raises:
        UserError: no such scorer, or a parameter it does not have.
    """
    chosen = options(stem, params or {}, getattr(_find.module(stem), "DEFAULTS", {}))
    named = getattr(_find.module(stem), "HUB", (("source", "revision"),))
    sources = [(str(chosen.get(source) or ""), chosen.get(revision)) for source, revision in named]
    return tuple(
        WeightsRef(
            role="scorer",
            name=stem,
            source=source,
            revision=revision,
            files=_FILES_OF_A_MODEL,
            licence="see its page on the hub",
        )
        for source, revision in sources
        if source.count("/") == 1 and not source.startswith(("package:", "/", ".", "~")) and not Path(source).is_dir()
    )


def libraries(stem: str) -> tuple[str, ...]:
    """Distributions whose versions the scores depend on; of an installed package's scorer the package is one."""
    brought = _find.plugin(stem)
    own = () if brought is None else (brought.package,)
    return (*own, *_find.module(stem).LIBRARIES)


def own_file(stem: str) -> str | None:
    """The parameter that names a file which the user brings (``harness fetch weights STEM --from FILE``), or None."""
    name: str | None = getattr(_find.module(stem), "OWN_FILE", None)
    return name


def check_own_file(stem: str, path: Path) -> None:
    """Read the file that the user brings for a scorer of ``own_file``; warns of one that is no published one.

    Raises:
        UserError: it is none of its kind.
    """
    _find.module(stem).check_own_file(path)


def pair(stem: str) -> bool:
    """Whether the scorer compares each image with a reference image."""
    return bool(_find.module(stem).PAIR)


def text(stem: str) -> bool:
    """Whether the scorer reads each image's prompt."""
    return bool(getattr(_find.module(stem), "TEXT", False))


def options(stem: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A scorer's parameters: ``defaults`` overridden by ``params``.

    Raises:
        UserError: a parameter the scorer does not have.
    """
    for key in params:
        if key not in defaults:
            raise UserError(
                f"scorer {stem!r} has no parameter {key!r}{nearest(key, defaults)} (it has: {', '.join(defaults)})"
            )
    return {**defaults, **params}
