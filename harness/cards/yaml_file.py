"""One card file, read and checked: YAML to a frozen model, every complaint with file, line and nearest key."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from harness.cards.faults import value_fault
from harness.cards.places import with_absolute_paths
from harness.errors import UserError, nearest

Place = tuple[str | int, ...]  # of a value in a card: keys and indices from the top
MOST_NAMED = 3  # mistakes of one file in one message
_DEEPEST = 50  # levels of a card; none that is shipped has more than eight
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def show(path: Path) -> str:
    """``path`` as a person would type it: relative where it lies below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def parse(model: type[AnyModel], path: Path, root: Path) -> AnyModel:
    """Reads one card file.

    Raises:
        UserError: one line with file, line and key.
    """
    content, lines = read_yaml(path)
    own = {"name": path.stem, "path": str(path), "root": str(root)}
    for key in own:
        if key in content:
            raise UserError(f"{show(path)}:{lines[(key,)]}: unknown key {key!r} (a card's name is its file's stem)")
    try:
        content = with_absolute_paths(content, path.absolute().parent)  # of the user's own weights: seen from the card
        # Strict and through JSON: `steps: yes` is no number, while a list may become a tuple.
        return model.model_validate_json(json.dumps({**content, **own}), strict=True)
    except ValidationError as error:
        raise UserError(_explain(error, model, path, lines)) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """A YAML mapping with the line of each key.

    Raises:
        UserError: file unreadable, not UTF-8, not YAML, not a mapping, a key twice, nested without end.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{show(path)}: not UTF-8 (byte {error.start})") from None
    try:
        return _read_yaml(text, path)
    except (RecursionError, yaml.YAMLError) as error:
        if _too_deep(text):  # what a reader says of it, and where, depends on its release
            raise UserError(f"{show(path)}: is nested too deeply (more than {_DEEPEST} levels)") from None
        if isinstance(error, RecursionError):
            raise UserError(f"{show(path)}: a part of it is an alias of the whole") from None
        raise UserError(_not_yaml(error, path)) from None


def _too_deep(text: str) -> bool:
    """Whether lists and mappings are nested too deeply; asked of PyYAML's Python parser, which has no limit."""
    depth = 0
    with contextlib.suppress(yaml.YAMLError):
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                return True
    return False


def _not_yaml(error: yaml.YAMLError, path: Path) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"{show(path)}:{line}: not YAML: {error.problem or error.context}"
    return f"{show(path)}: not YAML: {' '.join(str(error).split())}"


def _read_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    node = yaml.compose(text, Loader=CardLoader)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{show(path)}:1: a card is a mapping of keys to values")
    lines: dict[Place, int] = {}
    content = _plain(node, (), lines, path)
    return content, lines


class CardLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 less its traps: a date stays text and 1e-3 is a number."""


_FLOAT = re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
CardLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
CardLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _plain(node: yaml.Node, at: Place, lines: dict[Place, int], path: Path) -> Any:
    """The node's value as dict, list or scalar; fills ``lines`` and refuses a key given twice."""
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in mapping:
                raise UserError(f"{show(path)}:{line}: key {key!r} is given twice (first in line {lines[*at, key]})")
            lines[*at, key] = line
            mapping[key] = _plain(value, (*at, key), lines, path)
        return mapping
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, (*at, i), lines, path) for i, value in enumerate(node.value)]
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError):
        value = b""
    if not isinstance(value, str | int | float | None):  # such as the bytes of !!binary
        raise UserError(f"{show(path)}:{node.start_mark.line + 1}: cannot read the value {str(node.value)[:40]!r}")
    return value


def _explain(error: ValidationError, model: type[BaseModel], path: Path, lines: Mapping[Place, int]) -> str:
    """Pydantic's findings on one line, each with its line in the file."""
    messages = []
    for item in error.errors(include_url=False):
        at = item["loc"]
        line = next((lines[at[:k]] for k in range(len(at), 0, -1) if at[:k] in lines), 1)
        key = ".".join(str(part) for part in at)
        if item["type"] == "extra_forbidden":
            fields = [f for f in _keys(model, at[:-1]) if f not in ("name", "path", "root")]
            text = f"unknown key {key!r}{nearest(str(at[-1]), fields)} (there are: {', '.join(fields)})"
        elif item["type"] == "missing":
            text = f"missing key {key!r}"
        elif item["type"] == "value_error":
            text = f"{key + ': ' if key else ''}{value_fault(item)}"
        else:
            text = f"{key}: {value_fault(item)}, got {item['input']!r}"
        messages.append(f"{show(path)}:{line}: {text}")
    more = len(messages) - MOST_NAMED
    return "; ".join(messages[:MOST_NAMED]) + (f" (and {more} more)" if more > 0 else "")


def _keys(model: type[BaseModel], at: Sequence[str | int]) -> list[str]:
    """The keys allowed at a place of a card: follows declared fields, through dicts and tuples."""
    for part in at:
        field = model.model_fields.get(str(part))
        if field is not None:  # else a key of a dict or an index, whose model was already found
            model = next(iter(_models(field.annotation)), model)
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
