"""The kinds of stages: what each module of ``pipeline/stages`` declares of itself, read without importing it.

A module there is a kind of stage if it says its place in the flow::

    PLACE = 20                where rows meet it, after all of a lower place
    READS_IMAGES = True       whether it needs the images, which may have been discarded; without it, no
    GPU = True                whether it runs on a GPU where there is one; without it, no
    LIBRARIES = ("torch",)    whose versions its output depends on, beside those that a scorer or an editor names

A kind that changes images is a step of a regenerator, by its name in the card's ``steps``, if it also has these::

    STEP = True
    class Settings(Model)                               what the card may set (``harness.cards.base.Model``)
    load(worker, context, previous) -> Worker           ``worker`` has ``settings``, ``variant``, the card's ``name``

It reads rows with images (schema IMAGE or REGENERATION) and returns them, changed, as REGENERATION under the variant's
name. Planning imports its module, so that model libraries are imported inside functions.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.cards.base import Model
from harness.cards.faults import value_fault
from harness.cards.regenerator import RegeneratorCard
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest
from harness.pipeline import stages


class StageKind(NamedTuple):
    """The declarations of a kind of stage."""

    place: int
    reads_images: bool = False
    gpu: bool = False
    libraries: tuple[str, ...] = ()
    is_step: bool = False


def names() -> list[str]:
    """Every kind, in the order in which rows meet them."""
    stems = {path.stem for folder in stages.__path__ for path in Path(folder).glob("[a-z]*.py")}
    known = [stem for stem in stems if "PLACE" in _constants(stem)]
    return sorted(known, key=lambda kind: (declared(kind).place, kind))


def steps(card: RegeneratorCard) -> list[str]:
    """The kinds of a regenerator card's ``steps``, in the order in which rows meet them.

    Raises:
        UserError: there is no such kind of step.
    """
    known = [name for name in names() if declared(name).is_step]
    for kind in card.steps:
        if kind not in known:
            raise UserError(
                f"regenerator {card.name!r}: no kind of step {kind!r}{nearest(kind, known)} "
                f"(there are: {', '.join(known) or 'none'}); see {show(card.path)}"
            )
    return [kind for kind in known if kind in card.steps]


def settings(kind: str, card: RegeneratorCard) -> Model:
    """The settings of one of a regenerator card's ``steps``, as the kind's ``Settings`` reads them.

    Raises:
        UserError: values that it does not take.
    """
    where = f"regenerator {card.name!r}: steps.{kind}"
    model: type[Model] = importlib.import_module(f"{stages.__name__}.{kind}").Settings
    unknown = [key for key in card.steps[kind] if key not in model.model_fields]
    if unknown:
        near = nearest(unknown[0], model.model_fields)
        raise UserError(f"{where}: no setting {unknown[0]!r}{near} (there are: {', '.join(model.model_fields)})")
    try:
        return model.model_validate(card.steps[kind])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}.{key}: {value_fault(first)}; see {show(card.path)}") from None


@cache
def declared(kind: str) -> StageKind:
    """What the module of a kind declares.

    Raises:
        ValueError: there is no such kind of stage.
    """
    constants = _constants(kind)
    if "PLACE" not in constants:
        raise ValueError(f"no kind of stage {kind!r} in {', '.join(stages.__path__)}")
    return StageKind(
        place=int(constants["PLACE"]),
        reads_images=bool(constants.get("READS_IMAGES", False)),
        gpu=bool(constants.get("GPU", False)),
        libraries=tuple(constants.get("LIBRARIES", ())),
        is_step=bool(constants.get("STEP", False)),
    )


@cache
def _constants(stem: str) -> dict[str, Any]:
    """The upper-case names that a module gives a plain value to."""
    path = next((p for folder in stages.__path__ if (p := Path(folder) / f"{stem}.py").is_file()), None)
    if path is None:
        return {}
    values: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("PLACE", "READS_IMAGES", "GPU", "LIBRARIES", "STEP"):
                values[name] = ast.literal_eval(node.value)
    return values
