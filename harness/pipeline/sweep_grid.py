"""What a sweep combines: lists (defenses, benchmarks, ...) and axes (``regen.alpha=0.3,0.5``), and the combinations.

Nothing here looks at a card; what values mean is said in ``harness.pipeline.sweep_cells``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.cards.overrides import said
from harness.cards.sweep import Mode, SweepCard
from harness.errors import UserError, nearest

LISTS = ("backbone", "seed", "defense", "bench", "regen")  # in the order in which cells come
CAPTIONER = "captioner"
SECTIONS = ("backbone", "defense", "regen")  # whose parameters an axis may change: regen.alpha
CAPTIONED_BY = "regen.vlm"  # what ``captioner`` is short for

Combination = Mapping[str, str]  # a value for each list that is named and for each axis that applies


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Lists and axes. A list without values is left to the profile; so is a parameter without an axis to its card."""

    lists: Mapping[str, tuple[str, ...]]  # of LISTS
    axes: Mapping[str, tuple[str, ...]]
    mode: Mode = "product"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UserError: an axis that is none, a value twice, a list that is an axis too, axes of unequal length to zip.
        """
        for axis in self.axes:
            _check_name(axis)
            if self.lists.get(axis):
                raise UserError(f"--set {axis}: {', '.join(self.lists[axis])} is given by --{axis} too; say it once")
        if CAPTIONER in self.axes and CAPTIONED_BY in self.axes:
            raise UserError(f"--set {CAPTIONER} and --set {CAPTIONED_BY} are the same; say it once")
        for name, values in (*self.lists.items(), *self.axes.items()):
            if twice := sorted({v for v in values if values.count(v) > 1}):
                raise UserError(f"{name}: {twice[0]!r} is given twice")
        self._check_mode()

    def _check_mode(self) -> None:
        if self.mode != "product" and not self.axes:
            raise UserError(f"--{self.mode} is of the axes, and no --set names one")
        lengths = {axis: len(values) for axis, values in self.axes.items()}
        if self.mode == "zip" and len(set(lengths.values())) > 1:
            told = ", ".join(f"{axis} has {n}" for axis, n in lengths.items())
            raise UserError(f"--zip takes axes value by value, so they need as many values each: {told}")
        if self.mode == "one-at-a-time":
            for axis in self.axes:
                if axis in LISTS:
                    raise UserError(f"--one-at-a-time goes around a parameter's own value; name a {axis} with --{axis}")

    def combinations(self) -> list[Combination]:
        """Every combination, in a fixed order: lists first, the last axis fastest."""
        lists = {name: self.lists[name] for name in LISTS if self.lists.get(name)}
        outer = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
        return [{**listed, **chosen} for listed in outer for chosen in self._axes()]

    def _axes(self) -> list[dict[str, str]]:
        if self.mode == "one-at-a-time":
            return [{}, *({axis: value} for axis, values in self.axes.items() for value in values)]
        rows = zip(*self.axes.values(), strict=True) if self.mode == "zip" else itertools.product(*self.axes.values())
        return [dict(zip(self.axes, values, strict=True)) for values in rows]


def parse(settings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``["regen.alpha=0.3,0.5"]`` as {"regen.alpha": ("0.3", "0.5")}.

    Raises:
        UserError: no KEY=VALUES, no value, or a key twice.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.strip()
        values = tuple(part.strip() for part in text.split(","))
        if not separator or not key or not all(values):
            raise UserError(f"--set {setting!r} is no KEY=VALUE,VALUE,... such as regen.alpha=0.3,0.5,0.7")
        if key in axes:
            told = f"{','.join(axes[key])}, then {','.join(values)}"
            raise UserError(f"--set {key} is given twice ({told}): say all its values at once")
        axes[key] = values
    return axes


def _check_name(axis: str) -> None:
    section, dot, parameter = axis.partition(".")
    if axis in (*LISTS, CAPTIONER) or (dot and section in SECTIONS and parameter):
        return
    names = [*LISTS, CAPTIONER]
    near = nearest(axis, names) if not dot else nearest(section, SECTIONS)
    sections = ", ".join(f"{s}.PARAMETER" for s in SECTIONS)
    raise UserError(f"--set {axis}: nothing goes by that name{near} (there are: {', '.join(names)}, {sections})")


@dataclass(frozen=True)
class CardGrid:
    """What a sweep card combines."""

    card: SweepCard

    def under(
        self, lists: Mapping[str, tuple[str, ...]], axes: Mapping[str, tuple[str, ...]], mode: Mode | None
    ) -> Grid:
        """The card's grid; lists and axes that are given replace its own, and add to them.

        Raises:
            UserError: they contradict the rest of the card.
        """
        card = self.card
        own = {
            "defense": card.defenses,
            "bench": card.benches,
            "backbone": card.backbones,
            "regen": card.regenerators,
            "seed": tuple(map(str, card.seeds)),
        }
        merged = {name: lists.get(name) or (() if name in axes else values) for name, values in own.items()}
        said_axes = {axis: tuple(map(said, values)) for axis, values in card.set.items()}
        kept = {axis: values for axis, values in said_axes.items() if not lists.get(axis)}
        return Grid(lists=merged, axes={**kept, **axes}, mode=mode or card.mode)
