"""Grids: combinations against itertools, and what contradicts itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.sweep import Mode, SweepCard
from harness.errors import UserError
from harness.pipeline.sweep_grid import CardGrid, Grid, parse

_VALUES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True).map(tuple)
_LISTS = st.fixed_dictionaries(
    {"defense": _VALUES, "bench": _VALUES}, optional={"seed": _VALUES, "backbone": _VALUES, "regen": _VALUES}
)
_KEYS = st.sampled_from(["regen.alpha", "regen.lam", "defense.steps", "backbone.guidance", "captioner"])
_ORDER = ("backbone", "seed", "defense", "bench", "regen")


def _as_pairs(grid: Grid) -> list[tuple[tuple[str, str], ...]]:
    return [tuple(combination.items()) for combination in grid.combinations()]


@given(_LISTS, st.dictionaries(_KEYS, _VALUES, max_size=3))
def test_a_product_is_that_of_itertools(lists: dict[str, tuple[str, ...]], axes: dict[str, tuple[str, ...]]) -> None:
    named = [(name, lists[name]) for name in _ORDER if name in lists] + list(axes.items())
    expected = [
        tuple(zip([name for name, _ in named], values, strict=True))
        for values in itertools.product(*(values for _, values in named))
    ]
    assert _as_pairs(Grid(lists=lists, axes=axes)) == expected


@given(_LISTS, st.lists(_KEYS, min_size=1, max_size=3, unique=True), st.data())
def test_zipped_axes_go_value_by_value_within_each_of_the_lists(
    lists: dict[str, tuple[str, ...]], keys: list[str], data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 4))
    values = st.lists(st.integers().map(str), min_size=length, max_size=length, unique=True).map(tuple)
    axes = {key: data.draw(values) for key in keys}
    combinations = Grid(lists=lists, axes=axes, mode="zip").combinations()
    outer = list(itertools.product(*(lists[name] for name in _ORDER if name in lists)))
    assert [tuple(c[key] for key in keys) for c in combinations] == list(zip(*axes.values(), strict=True)) * len(outer)


@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=3))
def test_one_at_a_time_changes_none_or_one(axes: dict[str, tuple[str, ...]]) -> None:
    grid = Grid(lists={"defense": ("x",), "bench": ("y",)}, axes=axes, mode="one-at-a-time")
    changed = [{k: v for k, v in c.items() if k in axes} for c in grid.combinations()]
    assert changed == [{}, *({key: value} for key, values in axes.items() for value in values)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["regen.alpha"], "is no KEY=VALUE"),
        (["regen.alpha="], "is no KEY=VALUE"),
        (["regen.alpha=0.3,,0.5"], "is no KEY=VALUE"),
        (["regen.alpha=0.3", "regen.alpha=0.5"], "regen.alpha is given twice (0.3, then 0.5)"),
    ],
)
def test_settings_that_say_nothing_or_two_things_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("lists", "axes", "mode", "message"),
    [
        ({}, {"regn.alpha": ("1",)}, "product", "did you mean 'regen'"),
        ({}, {"defence": ("uce",)}, "product", "did you mean 'defense'"),
        ({"defense": ("uce",)}, {"defense": ("rece",)}, "product", "uce is given by --defense too"),
        ({}, {"captioner": ("a",), "regen.vlm": ("b",)}, "product", "are the same"),
        ({"bench": ("i2p", "i2p")}, {}, "product", "'i2p' is given twice"),
        ({}, {"regen.alpha": ("0", "1"), "regen.lam": ("1",)}, "zip", "regen.alpha has 2, regen.lam has 1"),
        ({}, {}, "zip", "no --set names one"),
        ({}, {"seed": ("1", "2")}, "one-at-a-time", "name a seed with --seed"),
    ],
)
def test_contradictions_are_refused(
    lists: dict[str, tuple[str, ...]], axes: dict[str, tuple[str, ...]], mode: Mode, message: str
) -> None:
    with pytest.raises(UserError) as error:
        Grid(lists=lists, axes=axes, mode=mode)
    assert message in str(error.value)


def test_what_stands_beside_a_card_replaces_and_adds() -> None:
    card = SweepCard(
        name="mine", path=Path("mine.yaml"), root=Path(), summary="of a test", defenses=("uce",), benches=("i2p",),
        seeds=(1, 2), set={"regen.alpha": (0.3, 0.5), "regen.keep_safe": (True, None)},
    )  # fmt: skip
    plain = CardGrid(card).under({}, {}, None)
    assert plain.axes == {"regen.alpha": ("0.3", "0.5"), "regen.keep_safe": ("true", "null")}
    assert {name: values for name, values in plain.lists.items() if values} == {
        "defense": ("uce",), "bench": ("i2p",), "seed": ("1", "2"),
    }  # fmt: skip
    other = CardGrid(card).under({"bench": ("coco",)}, {"regen.alpha": ("1",), "regen.lam": ("2",)}, "product")
    assert other.axes == {"regen.alpha": ("1",), "regen.keep_safe": ("true", "null"), "regen.lam": ("2",)}
    assert other.lists["bench"] == ("coco",)
    assert other.lists["defense"] == ("uce",)
