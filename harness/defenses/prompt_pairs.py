"""Pairs of prompts that differ in a concept only, made from templates: what SafeRedir learns from."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from harness.errors import UserError, nearest


class Pair(NamedTuple):
    """Two prompts that differ in the concept only."""

    unsafe: str
    safe: str


def slots(template: str) -> list[str]:
    """Names of a template's slots in order, ``""`` for a bare ``{}``.

    Raises:
        ValueError: braces that do not match, or more than a name between them.
    """
    named = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise ValueError(f"between braces stands a slot's name, or nothing: {template!r}")
        if name is not None:
            named.append(name)
    return named


def check(templates: Sequence[str], fill: Mapping[str, Sequence[str]], words: int) -> None:
    """Refuse templates that cannot be filled.

    Args:
        templates: to be checked.
        fill: what a slot of each name can hold.
        words: bare slots that each template has.

    Raises:
        UserError: naming the template.
    """
    for template in templates:
        try:
            named = slots(template)
        except ValueError as error:
            raise UserError(f"template {template!r}: {error}") from None
        if named.count("") != words:
            raise UserError(f"template {template!r} has {named.count('')} bare slots {{}}, {words} are needed")
        for name in filter(None, named):
            if not fill.get(name):
                raise UserError(f"template {template!r}: nothing to fill {{{name}}} with{nearest(name, fill)}")


def made(
    templates: Sequence[str], fill: Mapping[str, Sequence[str]], words: Sequence[Sequence[str]], count: int, seed: int
) -> Iterator[tuple[str, ...]]:
    """``count`` contexts, drawn at random; each as one prompt for each list of ``words``.

    Args:
        templates: with named slots, each filled on its own, and at most one bare one.
        fill: what a slot of each name can hold.
        words: lists whose entries take the bare slot's place; a context draws one of each list.
        count: how many.
        seed: equal seeds give equal prompts.
    """
    rng = random.Random(seed)
    for _ in range(count):
        context = "".join(
            text + ("" if name is None else "\0" if name == "" else rng.choice(fill[name]))
            for text, name, _, _ in string.Formatter().parse(rng.choice(templates))
        )
        yield tuple(context.replace("\0", rng.choice(choices)) for choices in words)
