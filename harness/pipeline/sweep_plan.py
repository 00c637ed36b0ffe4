"""A sweep as one plan: the conditions of all cells, each stage once, so that what cells share is computed once.

Cells that differ in a regenerator's values are variants of one condition; those of other defenses and benchmarks are
other conditions; those of other backbones and seeds have other rows, so they are *parts*, each measured by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.sweep import Mode
from harness.metrics.comparison import BASE
from harness.pipeline.conditions import Condition
from harness.pipeline.evaluate import file_hashes, prepare
from harness.pipeline.plan import Plan
from harness.pipeline.request import BASELINE, Places, Request
from harness.pipeline.sweep_cells import CellReader, SweepCell
from harness.pipeline.sweep_grid import Grid
from harness.regenerators.variants import NONE
from harness.store import fingerprint
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store, is_complete


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a person asked for: settings to be combined, and what all cells have in common."""

    grid: Grid
    card: str | None = None
    profile: str = "paper"
    concept: str | None = None
    limit: int | None = None
    accept_change: tuple[str, ...] = ()

    @property
    def mode(self) -> Mode:
        return self.grid.mode

    @property
    def name(self) -> str:
        """The run's folder: readable, and the same whenever the same is asked for. Known without planning."""
        lists = self.grid.lists
        stem = self.card or "-".join(lists.get("defense", ())) + "_" + "-".join(lists.get("bench", ()))
        asked = [
            {name: values for name, values in lists.items() if values},
            dict(self.grid.axes),
            [self.mode, self.profile, self.concept, self.limit, list(self.accept_change)],
        ]
        return re.sub(r"[^\w.+:=-]", "_", f"sweep_{stem}_{self.profile}")[:80] + f"_{fingerprint.digest(asked)[:8]}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Cells of one backbone and one choice of seeds, and the plan that gives their numbers."""

    plan: Plan
    cells: tuple[SweepCell, ...]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Everything a sweep will do."""

    sweep: Sweep
    parts: tuple[Part, ...]

    @property
    def cells(self) -> tuple[SweepCell, ...]:
        return tuple(cell for part in self.parts for cell in part.cells)

    @property
    def whole(self) -> Plan:
        """One plan of all parts, to be carried out; its cells are the sweep's."""
        first = self.parts[0].plan
        conditions = tuple(c for part in self.parts for c in part.plan.conditions)
        builds = {b.fingerprint: b for part in self.parts for b in part.plan.asked_builds}
        places = {
            (part.plan.backbone.name, part.plan.request.seed, c.defense, c.bench): i
            for i, (part, c) in enumerate((part, c) for part in self.parts for c in part.plan.conditions)
        }
        cells = tuple((places[c.backbone, c.seed, c.defense, c.bench], c.variant) for c in self.cells)
        return replace(first, conditions=conditions, asked_builds=tuple(builds.values()), cells=cells)

    def work(self, store: Store) -> dict[str, dict[str, int]]:
        """Of each stage: how many different ones the cells need together, their shards, and those that are missing."""
        whole = self.whole
        paths: dict[str, dict[str, set[Path]]] = {name: {} for name in whole.stage_names()}
        for condition in whole.conditions:
            for spec in condition.stages:
                shards = {store.path(spec.stage, spec.fingerprint, s.key) for s in condition.shards}
                paths[spec.stage].setdefault(spec.fingerprint, set()).update(shards)
        return {
            name: {
                "fingerprints": len(own),
                "shards": sum(map(len, own.values())),
                "missing_shards": sum(not is_complete(path) for shards in own.values() for path in shards),
            }
            for name, own in paths.items()
        }

    def digest(self) -> str:
        """A hash of every fingerprint and shard: whether a folder's results are still those of this plan."""
        return fingerprint.digest(
            [
                [
                    condition.defense,
                    condition.bench,
                    [s.key for s in condition.shards],
                    [[v.name, *(f"{s.stage}:{s.fingerprint}" for s in v.stages)] for v in condition.variants],
                ]
                for part in self.parts
                for condition in part.plan.conditions
            ]
        )


def cells_of(sweep: Sweep, places: Places) -> list[SweepCell]:
    """The cells of ``sweep``; looks at cards only.

    Raises:
        UserError: an unknown name or key, a bad value, or two cells that are the same.
    """
    profile = load_card(ProfileCard, sweep.profile, places.roots)
    return CellReader(profile, places.roots, sweep.concept).cells(sweep.grid)


def plan_of(sweep: Sweep, places: Places) -> SweepPlan:
    """Resolve, check and fingerprint every cell. Loads no model; writes nothing.

    Raises:
        UserError: a cell that cannot be, or something that is missing on this machine.
    """
    hashes = file_hashes(places)
    groups: dict[tuple[str, int | None], list[SweepCell]] = {}
    for cell in cells_of(sweep, places):
        groups.setdefault((cell.backbone, cell.seed), []).append(cell)
    parts = [_part(sweep, cells, places, hashes) for cells in groups.values()]
    return SweepPlan(sweep=sweep, parts=tuple(parts))


def _part(sweep: Sweep, cells: Sequence[SweepCell], places: Places, hashes: FileHashes) -> Part:
    """The cells of one backbone and seed, planned together."""
    plans = [prepare(request, places, hashes) for request in _requests(sweep, cells)]
    wanted = {(c.defense, c.bench, c.variant) for c in cells}
    conditions = _merged((c for plan in plans for c in plan.conditions), wanted)
    names = {key: tuple(dict.fromkeys(getattr(c, key) for c in cells)) for key in ("defense", "bench")}
    request = replace(plans[0].request, defenses=names["defense"], benches=names["bench"], regens=_regens(cells))
    policies = {concept: cards for plan in plans for concept, cards in plan.policies.items()}
    return Part(
        plan=replace(plans[0], request=request, conditions=tuple(conditions), policies=policies), cells=tuple(cells)
    )


def _requests(sweep: Sweep, cells: Sequence[SweepCell]) -> list[Request]:
    """One request if the cells are all combinations of their defenses, benchmarks and regenerators, else one a pair.

    Undefended images stand beside, for scorers that compare with them, where the sweep has some.
    """
    pairs: dict[tuple[str, str], list[SweepCell]] = {}
    for cell in cells:
        pairs.setdefault((cell.defense, cell.bench), []).append(cell)
    defenses, benches = (tuple(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    common = Request(
        defenses=defenses,
        benches=benches,
        profile=sweep.profile,
        backbone=cells[0].backbone,
        seed=cells[0].seed,
        concept=sweep.concept,
        limit=sweep.limit,
        accept_change=sweep.accept_change,
        baseline=False,
    )
    regens = {_regens(own) for own in pairs.values()}
    if len(regens) == 1 and len(pairs) == len(defenses) * len(benches):
        return [replace(common, regens=regens.pop())]
    undefended = {bench for defense, bench in pairs if defense == BASELINE}
    return [
        replace(common, defenses=(defense,), benches=(bench,), regens=_regens(own), baseline=bench in undefended)
        for (defense, bench), own in pairs.items()
    ]


def _regens(cells: Iterable[SweepCell]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.variant for c in cells if c.variant != BASE)) or (NONE,)


def _merged(conditions: Iterable[Condition], wanted: set[tuple[str, str, str]]) -> list[Condition]:
    """Each condition once, with the variants that are cells, and its images as drawn."""
    merged: dict[tuple[str, str], Condition] = {}
    for condition in conditions:
        place = condition.defense, condition.bench
        own = [v for v in condition.variants if v.name == BASE or (*place, v.name) in wanted]
        before = merged[place].variants if place in merged else ()
        union = {v.name: v for v in (*before, *own)}
        merged[place] = replace(merged.get(place, condition), variants=tuple(union.values()))
    return [c for place, c in merged.items() if any((*place, v.name) in wanted for v in c.variants)]
