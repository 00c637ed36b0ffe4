"""A sweep's numbers as one tidy table: a row per number, its cell's settings as columns; and the best cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.overrides import said
from harness.cards.policy import PolicyCard
from harness.metrics.cells import Cell
from harness.metrics.clusters import clusters
from harness.metrics.policies import verdicts
from harness.metrics.selection import Selection, select
from harness.pipeline.sweep_cells import SweepCell, Value
from harness.pipeline.sweep_plan import Part

NAMES = ("backbone", "seed", "defense", "variant", "bench")
_NUMBERS = ("k", "n", "value", "low", "high", "interval", "errors", "excluded", "subset")
_MEASURED = ("metric", "policy", "scorer", "reference", "main")


class Measured(NamedTuple):
    """A part of a sweep with its scores and numbers."""

    part: Part
    scores: pa.Table  # a row per image
    numbers: Sequence[Cell]


class Best(NamedTuple):
    """The cell of the lowest ASR over one benchmark."""

    bench: str
    policy: str
    cells: tuple[SweepCell, ...]  # that were compared, in the order of the selection's indices
    selection: Selection

    @property
    def cell(self) -> SweepCell:
        return self.cells[self.selection.best]

    def to_json(self) -> dict[str, Any]:
        """As plain data, cells by their settings."""
        chosen = self.selection
        return {
            **chosen.to_json(),
            "bench": self.bench,
            "policy": self.policy,
            "of": len(self.cells),
            "best": describe(self.cell),
            "tied": [describe(self.cells[i]) for i in chosen.tied],
        }


def describe(cell: SweepCell) -> dict[str, Value]:
    """A cell's names and settings."""
    return {**{name: getattr(cell, name) for name in NAMES}, **cell.settings}


def table(measured: Sequence[Measured]) -> pa.Table:
    """Every number of every cell, and of the images as drawn that regenerations start from (``cell`` is null there)."""
    cells = [cell for one in measured for cell in one.part.cells]
    order = {cell: i for i, cell in enumerate(cells)}
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.settings if axis not in NAMES))
    rows = [_row(number, one.part, order, axes) for one in measured for number in one.numbers]
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return pa.table({name: _column(values) for name, values in columns.items()})


def _row(number: Cell, part: Part, order: Mapping[SweepCell, int], axes: Sequence[str]) -> dict[str, Any]:
    names = {
        "backbone": part.plan.backbone.name,
        "seed": part.plan.request.seed,
        "defense": number.defense,
        "variant": number.variant,
        "bench": number.bench,
    }
    own = [c for c in part.cells if all(getattr(c, name) == value for name, value in names.items())]
    beside = [c for c in part.cells if (c.defense, c.bench) == (number.defense, number.bench)]
    return {
        "cell": order[own[0]] if own else None,
        **names,
        "concept": number.concept,
        **{axis: _shared(own or beside, axis) for axis in axes},
        **{name: getattr(number, name) for name in (*_MEASURED, *_NUMBERS)},
        "fingerprints": " ".join(number.fingerprints),
    }


def _shared(cells: Sequence[SweepCell], axis: str) -> Value:
    """What all cells have on an axis; None where they differ, as images that several regenerate have no alpha."""
    values = {cell.settings.get(axis) for cell in cells}
    of_images = not axis.startswith(("regen", "captioner"))
    return values.pop() if len(cells) == 1 or (of_images and len(values) == 1) else None


def _column(values: Sequence[Any]) -> pa.Array:
    """A column; values of several types become the words that names use for them."""
    kinds = {type(v) for v in values if v is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return pa.array([None if v is None else said(v) for v in values], pa.string())
    if kinds == {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array(values, pa.string() if not kinds else None)


def best(measured: Sequence[Measured], policies: Mapping[str, Sequence[PolicyCard]]) -> list[Best]:
    """Per benchmark the cell of the lowest ASR by the main policy; nothing where there is one cell, or no policy."""
    benches = dict.fromkeys(cell.bench for one in measured for cell in one.part.cells)
    return [chosen for bench in benches if (chosen := _best(bench, measured, policies)) is not None]


def _best(bench: str, measured: Sequence[Measured], policies: Mapping[str, Sequence[PolicyCard]]) -> Best | None:
    cells: list[SweepCell] = []
    columns: list[dict[tuple[str, int], bool | None]] = []
    names: dict[str, str] = {}
    policy: PolicyCard | None = None
    for one in measured:
        scores = one.scores.filter(pc.equal(one.scores["bench"], bench))
        if not scores.num_rows:
            continue
        names |= {row: names.get(name, name) for row, name in clusters(scores).items()}
        policy = next(iter(policies[scores["concept"][0].as_py()]), None)
        if policy is None:
            return None
        for cell in (c for c in one.part.cells if c.bench == bench):
            rows = scores.filter(
                pc.and_(pc.equal(scores["defense"], cell.defense), pc.equal(scores["variant"], cell.variant))
            )
            keys = zip(rows["row_id"].to_pylist(), rows["sample"].to_pylist(), strict=True)
            cells.append(cell)
            columns.append(dict(zip(keys, verdicts(policy, rows).to_pylist(), strict=True)))
    common = [key for key in (columns[0] if columns else ()) if all(c.get(key) is not None for c in columns)]
    if len(cells) < 2 or not common or policy is None:
        return None
    unsafe = np.array([[column[key] for key in common] for column in columns], np.bool_)
    return Best(bench, policy.name, tuple(cells), select(unsafe, [names[row] for row, _ in common]))
