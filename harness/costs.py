"""What a run's pictures took, from the sidecars of the store: device-seconds by stage, of all or of flagged ones only.

Not part of any result: seconds differ between machines and times. Loading of models is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.cells import PASS_THROUGH, Cell
from harness.compare import BASE
from harness.plan import Plan
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
    flagged: int | None = None  # of a regeneration: pictures that the main policy flags, of ``total``
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
    """The cost of every variant whose shards have one; scoring is left out."""
    flagged = {(c.defense, c.variant, c.bench): c.n + c.errors + c.excluded for c in cells if _main(c, PASS_THROUGH)}
    found = []
    for chain in plan.chains:
        base = {s.fingerprint for s in chain.variants[0].steps}
        for variant in chain.variants:
            own = [s for s in variant.steps if variant.name == BASE or s.fingerprint not in base]
            costs = [
                (s.stage, cost)
                for s in own
                for shard in chain.shards
                if (cost := store.cost(store.path(s.stage, s.fingerprint, shard.key))) is not None
            ]
            rows = sum(cost["rows"] for stage, cost in costs if stage == own[-1].stage)
            if not rows:
                continue
            place = chain.defense, variant.name, chain.bench
            regenerated = variant.name != BASE
            found.append(
                Cost(
                    defense=chain.defense,
                    variant=variant.name,
                    bench=chain.bench,
                    device="+".join(sorted({cost["device"] for _, cost in costs})),
                    rows=rows,
                    seconds=_by_stage(costs),
                    flagged=flagged.get(place, 0) if regenerated else None,
                    total=chain.num_rows if regenerated else None,
                )
            )
    return found


def _main(cell: Cell, metric: str) -> bool:
    return cell.metric == metric and cell.main


def _by_stage(costs: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for stage, cost in costs:
        found[stage] = round(found.get(stage, 0.0) + float(cost["seconds"]), 3)
    return found
