"""Weights on a path of the user's own: what is wrong with them, said before anything is loaded, and what is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.cards.backbone import SINGLE_FILES
from harness.cards.weights_ref import WeightsRef
from harness.cards.yaml_file import show
from harness.errors import UserError

_READ = (".json", ".txt", ".model", ".jinja", ".safetensors")  # of a folder; all else lies there unread
_PIPELINES = (
    "backbone",
    "configuration",
    "editor",
)  # roles of whole pipelines of diffusers; all other models are of transformers
_LEFT_OUT = ("safety_checker",)  # parts of a pipeline that are not drawn with
_SMALL_PARTS = {  # of a pipeline's parts without weights: how their classes' names end, and the file that each needs
    "Scheduler": "scheduler_config.json", "ImageProcessor": "preprocessor_config.json",
    "FeatureExtractor": "preprocessor_config.json",
}  # fmt: skip
_EXPECTED = {
    True: "a folder as diffusers saves it (model_index.json, each part's configuration and .safetensors)",
    False: "a folder as transformers saves it (config.json and .safetensors)",
}  # fmt: skip
_SHOWN = 5  # names of files in a message


def fault(weights: WeightsRef) -> str | None:
    """What is wrong with weights of the user's own, in one line with what is there and what is expected; None: nothing.

    Looks at names and at small files only.
    """
    place, is_pipeline = weights.place, weights.role in _PIPELINES
    expected = f"a folder with {weights.files[0]}" if weights.role == "lora" else _EXPECTED[is_pipeline]
    if weights.role == "backbone":
        expected += f", or one file of a whole pipeline ({' or '.join(SINGLE_FILES)})"
    lacking = _fault(place, is_pipeline, weights)
    return None if lacking is None else f"weights of {weights} at {show(place)}: {lacking}; expected is {expected}"


def read_files(place: Path) -> list[Path]:
    """Every file at ``place`` that a model may be read from."""
    if place.is_file():
        return [place]
    every = (p for p in place.rglob("*") if p.suffix in _READ and p.is_file())
    return sorted(p for p in every if not any(part.startswith(".") for part in p.relative_to(place).parts))


def parts(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline's folder that are drawn with: the library and class of each.

    Raises:
        UserError: its ``model_index.json`` cannot be read.
    """
    index = _json(folder / "model_index.json")
    listed = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: (str(v[0]), str(v[1])) for name, v in listed.items() if v[0] is not None and name not in _LEFT_OUT}


def pipeline_class(folder: Path) -> str:
    """The class of diffusers that a pipeline's folder was saved from.

    Raises:
        UserError: its ``model_index.json`` cannot be read, or names none.
    """
    name = _json(folder / "model_index.json").get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{show(folder / 'model_index.json')}: names no class of diffusers (_class_name)")
    return name


def _fault(place: Path, is_pipeline: bool, weights: WeightsRef) -> str | None:
    if not place.exists():
        return "nothing is there"
    if weights.role == "lora":
        return None if (place / weights.files[0]).is_file() else _listed(place)
    if place.is_file():
        is_read = weights.role == "backbone" and place.suffix in SINGLE_FILES
        return None if is_read else f"a file {place.suffix or 'without suffix'} is there"
    if not (place / ("model_index.json" if is_pipeline else "config.json")).is_file():
        return _listed(place)
    try:
        weightless = weights.role == "configuration"
        lacks = list(_lacking_parts(place, weightless) if is_pipeline else _lacking(place))
    except UserError as error:
        return str(error)
    return f"lacks {', '.join(lacks[:_SHOWN])}{' ...' if len(lacks) > _SHOWN else ''}" if lacks else None


def _lacking_parts(folder: Path, weightless: bool) -> Iterator[str]:
    for name, (_, class_name) in parts(folder).items():
        inside = folder / name
        small = next((file for end, file in _SMALL_PARTS.items() if class_name.endswith(end)), None)
        if small is not None:
            if not (inside / small).is_file():
                yield f"{name}/{small}"
        elif "Tokenizer" in class_name:
            if not inside.is_dir() or not read_files(inside):
                yield f"{name}/ (a tokenizer's files)"
        else:
            yield from (f"{name}/{lacking}" for lacking in _lacking(inside, weightless))


def _lacking(folder: Path, weightless: bool = False) -> Iterator[str]:
    """What a model's folder lacks: its configuration, its weights, or of weights in several files some."""
    if not (folder / "config.json").is_file():
        yield "config.json"
    if weightless:
        return
    held = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        named = set(_json(index).get("weight_map", {}).values())
        yield from (name for name in sorted(named) if not (folder / name).is_file())
        held = held or [index]
    if not held:
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.msgpack"))
        yield (
            f"*.safetensors ({', '.join(others[:2])} is not read: save it anew as safetensors)"
            if others
            else ("*.safetensors")
        )


def _listed(folder: Path) -> str:
    """What a folder holds, for a message."""
    if folder.is_file():
        return f"a file {folder.name} is there"
    names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir())
    if not names:
        return "an empty folder is there"
    return f"a folder with {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{show(path)} cannot be read") from None
    if not isinstance(content, dict):
        raise UserError(f"{show(path)} is no mapping")
    return content
