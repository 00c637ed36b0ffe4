"""The kinds of stages: what each module of ``pipeline/stages`` declares of itself, read without importing it.

A module there is a kind of stage if it says its place in the flow::

    PLACE = 20                where rows meet it, after all of a lower place
    READS_IMAGES = True       whether it needs the images, which may have been discarded; without it, no
    GPU = True                whether it runs on a GPU where there is one; without it, no
    LIBRARIES = ("torch",)    whose versions its output depends on, beside those that a scorer or an editor names
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parent / "stages"


class StageKind(NamedTuple):
    """The declarations of a kind of stage."""

    place: int
    reads_images: bool = False
    gpu: bool = False
    libraries: tuple[str, ...] = ()


def names() -> list[str]:
    """Every kind, in the order in which rows meet them."""
    known = [path.stem for path in _FOLDER.glob("[a-z]*.py") if "PLACE" in _constants(path.stem)]
    return sorted(known, key=lambda kind: (declared(kind).place, kind))


@cache
def declared(kind: str) -> StageKind:
    """What the module of a kind declares.

    Raises:
        ValueError: there is no such kind of stage.
    """
    constants = _constants(kind)
    if "PLACE" not in constants:
        raise ValueError(f"no kind of stage {kind!r} in {_FOLDER}")
    return StageKind(
        place=int(constants["PLACE"]),
        reads_images=bool(constants.get("READS_IMAGES", False)),
        gpu=bool(constants.get("GPU", False)),
        libraries=tuple(constants.get("LIBRARIES", ())),
    )


@cache
def _constants(stem: str) -> dict[str, Any]:
    """The upper-case names that a module gives a plain value to."""
    path = _FOLDER / f"{stem}.py"
    if not path.is_file():
        return {}
    values: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("PLACE", "READS_IMAGES", "GPU", "LIBRARIES"):
                values[name] = ast.literal_eval(node.value)
    return values
