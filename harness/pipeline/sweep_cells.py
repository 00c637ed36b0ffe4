"""The cells of a sweep: each combination of its grid as names that cards answer to, and the values they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseStack
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.errors import UserError
from harness.metrics.comparison import BASE
from harness.models import own_backbone
from harness.pipeline.sweep_grid import CAPTIONED_BY, CAPTIONER, Combination, Grid
from harness.regenerators import variants
from harness.regenerators.variants import NONE, Regenerator

Value = str | int | float | bool | None
LARGEST_SEED = 2**63 - 1  # half of what a row can hold: a prompt's further samples take the seeds that follow


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One combination of a sweep's settings, by names of cards with their values."""

    backbone: str
    seed: int | None  # for every row; None: the rows' own
    defense: str
    bench: str
    variant: str  # the regenerator's name, or "base"
    settings: Mapping[str, Value] = field(default_factory=dict, compare=False)  # the value on each axis, by its key

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.defense}/{self.variant} on {self.bench}, drawn by {self.backbone}{seed}"


class _Cards(NamedTuple):
    """What the names of a combination lead to."""

    backbone: BackboneCard
    defense: DefenseStack
    regen: Regenerator | None  # None: the images as drawn
    bench: BenchmarkCard


class CellReader:
    """Reads combinations with the cards of one profile; each name is looked up once."""

    def __init__(self, profile: ProfileCard, roots: Sequence[Path], concept: str | None = None) -> None:
        """Args: concept: to be removed, where it is not the benchmark's own."""
        self._profile, self._roots, self._concept = profile, roots, concept
        self._read: dict[tuple[str, str], Any] = {}

    def cells(self, grid: Grid) -> list[SweepCell]:
        """The cells of ``grid``, in its order; one at a time, a value that is the card's own is no further cell.

        Raises:
            UserError: an unknown name or key, a bad value, or two combinations that mean the same.
        """
        first_named: dict[SweepCell, Combination] = {}
        for combination in replace(grid, lists=self._completed(grid)).combinations():
            cell = self._cell(combination, tuple(grid.axes))
            if cell in first_named and grid.mode != "one-at-a-time":
                first, second = (_told(chosen) for chosen in (first_named[cell], combination))
                raise UserError(f"two cells are the same, {cell}: {first} and {second}; say each value once")
            first_named.setdefault(cell, combination)
        return list(first_named)

    def _completed(self, grid: Grid) -> dict[str, tuple[str, ...]]:
        """The grid's lists, and the profile's own backbone and regenerators where none are named."""
        own = {"regen": self._profile.regenerators or (NONE,), "backbone": (self._profile.backbone,)}
        named = {name: values for name, values in grid.lists.items() if values}
        return {name: values for name, values in own.items() if name not in grid.axes} | named

    def _cell(self, combination: Combination, axes: Sequence[str]) -> SweepCell:
        chosen = {CAPTIONED_BY if key == CAPTIONER else key: value for key, value in combination.items()}
        cards = _Cards(
            self._once("backbone", _spec("backbone", chosen), own_backbone.backbone),
            self._once("defense", _spec("defense", chosen), overrides.defense),
            self._once("regen", _spec("regen", chosen), self._regenerator),
            self._once("bench", chosen["bench"], _benchmark),
        )
        cell = SweepCell(
            backbone=cards.backbone.name,
            seed=_seed(chosen["seed"]) if "seed" in chosen else None,
            defense=cards.defense.name,
            bench=cards.bench.name,
            variant=BASE if cards.regen is None else cards.regen.variant,
        )
        return replace(cell, settings={axis: self._value(axis, cell, cards) for axis in axes})

    def _once(self, kind: str, spec: str, read: Callable[[str, Sequence[Path]], Any]) -> Any:
        if (kind, spec) not in self._read:
            self._read[kind, spec] = read(spec, self._roots)
        return self._read[kind, spec]

    def _regenerator(self, spec: str, roots: Sequence[Path]) -> Regenerator | None:
        if spec == NONE:
            return None
        if spec.startswith(f"{NONE}:"):
            raise UserError(f"--set regen.{spec.partition(':')[2].partition('=')[0]}: regenerator 'none' has no values")
        return variants.choose((spec,), self._profile.edition, roots)[0]

    def _value(self, axis: str, cell: SweepCell, cards: _Cards) -> Value:
        """What a cell has on an axis, the card's own value where the axis leaves it; None where there is no such."""
        section, _, parameter = (CAPTIONED_BY if axis == CAPTIONER else axis).partition(".")
        if not parameter:
            return _plain(getattr(cell, "variant" if axis == "regen" else axis))
        if section == "backbone":
            return _plain(getattr(cards.backbone, parameter))
        if section == "regen":
            value = None if cards.regen is None else cards.regen.values().get(parameter)
            return _plain(self._profile.captioner if axis == CAPTIONER and value is None else value)
        resolved = cards.defense.resolve(self._profile.edition, self._concept or cards.bench.concept)
        return _plain(resolved[0].get(parameter))


def _plain(value: Any) -> Value:
    """A value as a table holds it: what a card has as a list is told in words."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _benchmark(name: str, roots: Sequence[Path]) -> BenchmarkCard:
    return load_card(BenchmarkCard, name, roots)


def _spec(section: str, chosen: Combination) -> str:
    """The name with the values that axes of its section give it: ``resafe:alpha=0.5``."""
    values = {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith(f"{section}.")}
    if section == "defense" and values and len(overrides.layers(chosen[section])) > 1:
        key = next(iter(values))
        raise UserError(
            f"--set defense.{key}: {chosen[section]!r} is several defenses; name the values of each in it, such as "
            f"{overrides.layers(chosen[section])[0]}:{key}={values[key]}"
        )
    return chosen[section] + "".join(f":{key}={value}" for key, value in values.items())


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= LARGEST_SEED):
        raise UserError(f"--seed {text!r} is no whole number from 0 to {LARGEST_SEED}")
    return int(text)


def _told(combination: Combination) -> str:
    return ", ".join(f"{key}={value}" for key, value in combination.items())
