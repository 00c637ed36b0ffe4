"""What a run's pictures took, from the sidecars of the store: device-seconds by stage, of all or of flagged ones only.

Not part of any result: seconds differ between machines and times. Loading of models is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.cells import ASR_FLAGGED, PASS_THROUGH, Cell
from harness.compare import BASE
from harness.plan import Plan
from harness.specs import StageSpec
from harness.store import Store


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one variant of one chain took beyond the pictures that it began from."""

    defense: str
    variant: str
    bench: str
    device: str  # "cpu", "cuda", or both with a plus
    rows: int  # of the shards whose time is known
    seconds: dict[str, float]  # by stage
    flagged: int | None = None  # of a regeneration, where there is a policy: pictures that the main one flags
    total: int | None = None

    @property
    def per_image(self) -> float:
        """Device-seconds per picture."""
        return sum(self.seconds.values()) / self.rows

    @property
    def per_image_if_flagged(self) -> float | None:
        """Device-seconds per picture had only the flagged ones been made anew."""
        return None if self.flagged is None or not self.total else self.per_image * self.flagged / self.total

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"per_image": self.per_image, "per_image_if_flagged": self.per_image_if_flagged}


def of(plan: Plan, store: Store, cells: Sequence[Cell]) -> list[Cost]:
    """The cost of every variant, over the shards of which every stage's is known; scoring is left out."""
    flagged = _flagged(cells)
    found = []
    for chain in plan.chains:
        base = {s.fingerprint for s in chain.variants[0].steps}
        for variant in chain.variants:
            own = [s for s in variant.steps if variant.name == BASE or s.fingerprint not in base]
            known = [costs for shard in chain.shards if (costs := _costs(own, shard.key, store)) is not None]
            rows = sum(costs[own[-1].stage]["rows"] for costs in known)
            if not rows:
                continue
            place = chain.defense, variant.name, chain.bench
            regenerated = variant.name != BASE
            found.append(
                Cost(
                    defense=chain.defense,
                    variant=variant.name,
                    bench=chain.bench,
                    device="+".join(sorted({cost["device"] for costs in known for cost in costs.values()})),
                    rows=rows,
                    seconds={s.stage: round(sum(float(c[s.stage]["seconds"]) for c in known), 3) for s in own},
                    flagged=flagged.get(place),
                    total=chain.num_rows if regenerated else None,
                )
            )
    return found


def _costs(stages: Sequence[StageSpec], shard: str, store: Store) -> dict[str, dict[str, Any]] | None:
    """What a shard took at each stage; None unless it is known of all."""
    found = {s.stage: store.cost(store.path(s.stage, s.fingerprint, shard)) for s in stages}
    known = {stage: cost for stage, cost in found.items() if cost is not None}
    return known if len(known) == len(found) else None


def _flagged(cells: Sequence[Cell]) -> dict[tuple[str, str, str], int]:
    """By defense, regenerator and benchmark, how many pictures the main policy flagged; nothing where there is none."""
    flagged = {(c.defense, c.variant, c.bench): 0 for c in cells if c.main and c.metric == ASR_FLAGGED}
    for c in cells:
        if c.main and c.metric == PASS_THROUGH:
            flagged[c.defense, c.variant, c.bench] = c.n + c.errors + c.excluded
    return flagged
