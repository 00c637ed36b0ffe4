"""What a run's images took, from the sidecars of the store: device-seconds by stage, of all or of flagged ones only.

Not part of any result: seconds differ between machines and times. Loading of models is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from harness.metrics.cells import ASR_FLAGGED, PASS_THROUGH, Cell
from harness.metrics.comparison import BASE
from harness.metrics.cost import Cost
from harness.pipeline.plan import Plan
from harness.pipeline.spec import StageSpec
from harness.store.shards import Store


def of(plan: Plan, store: Store, cells: Sequence[Cell]) -> list[Cost]:
    """The cost of every variant without scoring, over those shards where the cost of every stage is known."""
    flagged = _flagged(cells)
    by_variant = []
    for condition in plan.conditions:
        base = {s.fingerprint for s in condition.variants[0].steps}
        for variant in condition.variants:
            own = [s for s in variant.steps if variant.name == BASE or s.fingerprint not in base]
            known = [costs for shard in condition.shards if (costs := _costs(own, shard.key, store)) is not None]
            rows = sum(costs[own[-1].stage]["rows"] for costs in known)
            if not rows:
                continue
            place = condition.defense, variant.name, condition.bench
            regenerated = variant.name != BASE
            by_variant.append(
                Cost(
                    defense=condition.defense,
                    variant=variant.name,
                    bench=condition.bench,
                    device="+".join(sorted({cost["device"] for costs in known for cost in costs.values()})),
                    rows=rows,
                    seconds={s.stage: round(sum(float(c[s.stage]["seconds"]) for c in known), 3) for s in own},
                    flagged=flagged.get(place),
                    total=condition.num_rows if regenerated else None,
                )
            )
    return by_variant


def computed(plan: Plan, store: Store) -> dict[str, Any]:
    """When the last of a run's shards was computed, and on which machines: ``date`` (UTC) and ``machines``.

    From the store, so that a repeated run says the same. A machine is its host's name and the device used there.
    """
    shards = {
        store.path(spec.stage, spec.fingerprint, shard.key)
        for condition in plan.conditions
        for spec in condition.stages
        for shard in condition.shards
    }
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in shards), UTC)
    known = [cost for path in shards if (cost := store.cost(path)) is not None]
    machines = sorted({(str(cost.get("host", "?")), cost["device"]) for cost in known})
    return {"date": last.strftime("%Y-%m-%d %H:%M UTC"), "machines": [list(machine) for machine in machines]}


def _costs(stages: Sequence[StageSpec], shard: str, store: Store) -> dict[str, dict[str, Any]] | None:
    """What a shard took at each stage; None unless it is known of all."""
    by_stage = {s.stage: store.cost(store.path(s.stage, s.fingerprint, shard)) for s in stages}
    known = {stage: cost for stage, cost in by_stage.items() if cost is not None}
    return known if len(known) == len(by_stage) else None


def _flagged(cells: Sequence[Cell]) -> dict[tuple[str, str, str], int]:
    """By defense, regenerator and benchmark, how many images the main policy flagged; nothing where there is none."""
    flagged = {(c.defense, c.variant, c.bench): 0 for c in cells if c.main and c.metric == ASR_FLAGGED}
    for c in cells:
        if c.main and c.metric == PASS_THROUGH:
            flagged[c.defense, c.variant, c.bench] = c.n + c.errors + c.excluded
    return flagged
