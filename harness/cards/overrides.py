"""Names with other values: ``resafe:alpha=0.5:tokens=8``, ``sd-1-4:scheduler=DDIMScheduler``, ``esd:steps=200``.

What a card says is changed for one run, and the change is part of the name that the tables show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.cards.backbone import BackboneCard
from harness.cards.defense import DefenseCard, DefenseStack
from harness.cards.faults import value_fault
from harness.cards.load import load_card
from harness.cards.yaml_file import CardLoader, show
from harness.errors import UserError, nearest

_SAMPLING = ("steps", "guidance", "scheduler", "width", "height", "micro_batch", "dtype")
_FLUX = "true_cfg"  # read by FluxPipeline alone
_STACKED = re.compile(r"\+(?=[a-z])")  # between defenses; 1e+5 is one value
_T5 = "max_sequence_length"  # read by pipelines with a T5 text encoder, whose cards say it


def parse(spec: str, option: str) -> tuple[str, dict[str, str]]:
    """The card's name, and what is asked to be different.

    Raises:
        UserError: a part that is no KEY=VALUE.
    """
    name, *changes = spec.split(":")
    asked: dict[str, str] = {}
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise UserError(f"{option} {spec!r}: {change!r} is no KEY=VALUE")
        if key in asked:
            raise UserError(f"{option} {spec!r}: {key!r} is given twice")
        asked[key] = value
    return name, asked


def known(spec: str, option: str, asked: Iterable[str], keys: Sequence[str], path: Path) -> None:
    """Refuse a key that the card at ``path`` does not have.

    Raises:
        UserError: with the nearest.
    """
    for key in asked:
        if key not in keys:
            raise UserError(
                f"{option} {spec!r}: no {key!r}{nearest(key, keys)} (there are: {', '.join(keys)}); see {show(path)}"
            )


def refused(spec: str, option: str, error: ValidationError) -> UserError:
    """The error for a value that a card does not take."""
    first = error.errors()[0]
    return UserError(f"{option} {spec!r}: {first['loc'][-1] if first['loc'] else 'value'}: {value_fault(first)}")


def said(value: Any) -> str:
    """A value as it is written in the name of a card with overrides."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)  # two values never share a name
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def backbone(spec: str, roots: Sequence[Path]) -> BackboneCard:
    """A backbone's card, sampled as ``spec`` says; its name then says so too.

    Raises:
        UserError: an unknown card or key, a bad value.
    """
    name, colon, changes = spec.partition(":")
    return sampled(load_card(BackboneCard, name, roots), changes if colon else None)


def sampled(card: BackboneCard, changes: str | None) -> BackboneCard:
    """The card sampled as ``changes`` say (``steps=25:guidance=5``); its name then says so too.

    Raises:
        UserError: an unknown key, a bad value.
    """
    if changes is None:
        return card
    spec = f"{card.name}:{changes}"
    _, asked = parse(spec, "--backbone")
    keys = _changeable(card)
    known(spec, "--backbone", asked, keys, card.path)
    plain = card.model_dump() | {"path": card.path, "root": card.root}
    try:
        changed = BackboneCard.model_validate(plain | asked)
    except ValidationError as error:
        raise refused(spec, "--backbone", error) from None
    differ = [k for k in keys if getattr(changed, k) != getattr(card, k)]
    if "scheduler" in differ:
        _require_scheduler(spec, changed)
    return changed.model_copy(update={"name": card.name + "".join(f":{k}={said(getattr(changed, k))}" for k in differ)})


def defense(spec: str, roots: Sequence[Path]) -> DefenseStack:
    """The defense that ``spec`` names: a card, perhaps with other parameters, or several on top of each other.

    ``esd:steps=200`` is ESD with 200 steps; ``rece+saferedir`` is SafeRedir on a backbone that RECE has changed. Which
    parameters a mechanism takes, and which defenses go together, is asked of the mechanisms later
    (``harness.defenses.require``).

    Raises:
        UserError: an unknown card, a part that is no KEY=VALUE, a value that is none.
    """
    return DefenseStack(tuple(_layer(part, spec, roots) for part in layers(spec)))


def layers(spec: str) -> list[str]:
    """The parts of a defense's name that stand on top of each other."""
    return _STACKED.split(spec)


def _layer(part: str, spec: str, roots: Sequence[Path]) -> DefenseCard:
    name, asked = parse(part, "--defense")
    card = load_card(DefenseCard, name, roots)
    values = {key: _value(text, part) for key, text in asked.items()}
    if "concept" in values:
        raise UserError(f"--defense {spec!r}: what is removed is the benchmark's own concept; another one: --concept")
    return card.changed(name + "".join(f":{k}={said(v)}" for k, v in values.items()), values) if asked else card


def _value(text: str, part: str) -> str | int | float | bool | None:
    """What a card would read there."""
    try:
        value = yaml.load(text, Loader=CardLoader)
    except yaml.YAMLError:
        value = text
    if not isinstance(value, str | int | float | bool | None) or "/" in str(value):  # it is to be part of a name
        raise UserError(
            f"--defense {part!r}: {text!r} is neither a number nor a word; lists and paths go into a card of your own "
            "(--cards)"
        )
    return value


def _changeable(card: BackboneCard) -> tuple[str, ...]:
    """The keys of the card that a name may change: those that its pipeline reads."""
    flux = (_FLUX,) if card.pipeline == "FluxPipeline" else ()
    return (*_SAMPLING, *flux, *((_T5,) if card.max_sequence_length is not None else ()))


def _require_scheduler(spec: str, card: BackboneCard) -> None:
    """Refuse a scheduler that the card's pipeline cannot take, as far as that is known before it is loaded."""
    if card.scheduler is not None and card.schedulers and card.scheduler not in card.schedulers:
        raise UserError(
            f"--backbone {spec!r}: no scheduler {card.scheduler!r}{nearest(card.scheduler, card.schedulers)} "
            f"(there are: {', '.join(card.schedulers)})"
        )
