"""What a plan will take: phases and shares, shards to do, hours, memory and disk, from the cards' estimates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.metrics.comparison import BASE, NONE
from harness.metrics.power import planned
from harness.pipeline import schedule
from harness.pipeline.builds import build_estimates
from harness.pipeline.conditions import Condition
from harness.pipeline.plan import Plan
from harness.pipeline.spec import StageSpec
from harness.store.shards import Store

_PNG_BYTES_PER_PIXEL = 1.6  # measured on photographs; drawings take less


def estimate(plan: Plan, store: Path, gpus: int = 0, gpu_memory_gb: float | None = None) -> dict[str, Any]:
    """The plan as plain data: conditions, stages with fingerprints, shards missing, expected cost.

    Args:
        plan: what is to be done.
        store: where outputs lie.
        gpus: how many there are to use.
        gpu_memory_gb: of one; None: not known.

    Raises:
        UserError: a model that fits no GPU.
    """
    there = Store(store)
    stages = []
    images, seconds = 0, 0.0
    for condition in plan.conditions:
        for spec in condition.stages:
            missing = [s for s in condition.shards if not there.path(spec.stage, spec.fingerprint, s.key).exists()]
            rows = sum(s.rows.num_rows for s in missing)
            images += rows if spec.seconds_per_image else 0
            seconds += rows * spec.seconds_per_image
            stages.append({
                "defense": condition.defense, "bench": condition.bench, "stage": spec.stage, "of": _of(spec),
                "fingerprint": spec.fingerprint, "shards": len(condition.shards), "missing_shards": len(missing),
                "missing_rows": rows,
            })  # fmt: skip
    builds = build_estimates(plan, store)
    excluded = sum(s.rows.num_rows - s.rows["excluded"].null_count for c in plan.conditions for s in c.shards)
    return {
        "run": plan.name,
        "profile": plan.profile.name,
        "backbone": plan.backbone.name,
        "rows": sum(c.num_rows for c in plan.conditions),
        "excluded": excluded,
        "left_out": [pair._asdict() for pair in plan.left_out],
        "images_to_draw": images,
        "phases": [
            [{"stages": list(s.stages), "gpu": s.gpu} for s in phase.actor_groups]
            for phase in schedule.cut(plan, gpus, gpu_memory_gb)
        ],
        "memory_gb": {name: memory for name in plan.stage_names() if (memory := schedule.memory(plan, name))},
        "hours": round(seconds / 3600 / max(gpus, 1), 3),
        "disk_mb": round(images * plan.backbone.width * plan.backbone.height * _PNG_BYTES_PER_PIXEL / 1e6, 1),
        "build_hours": round(sum(b["seconds"] for b in builds if not b["built"]) / 3600 / max(gpus, 1), 3),
        "builds": builds,
        "stages": stages,
    }


def comparisons(plan: Plan) -> list[dict[str, Any]]:
    """The differences that the planned rows can detect, per benchmark: defense against none, regeneration against base.

    These are the two families of tests that cells are adjusted within (``harness.metrics.comparison``). Rows that the
    guard excludes show nothing; a prompt with several images counts once.
    """
    comparisons = []
    for bench in dict.fromkeys(c.bench for c in plan.conditions):
        conditions = [c for c in plan.conditions if c.bench == bench]
        prompts = {
            row for s in conditions[0].shards for row, reason in zip(
                s.rows["row_id"].to_pylist(), s.rows["excluded"].to_pylist(), strict=True
            ) if reason is None
        }  # fmt: skip
        against_none = [c for c in conditions if c.defense != NONE] if _has_baseline(conditions) else []
        on_top = [v for c in conditions for v in c.variants if v.name != BASE]
        for compared, tests in (("defense against none", len(against_none)), ("regeneration on base", len(on_top))):
            if tests and prompts:
                comparisons.append({"bench": bench, "compared": compared, **planned(len(prompts), tests)._asdict()})
    return comparisons


def _has_baseline(conditions: Sequence[Condition]) -> bool:
    return any(c.defense == NONE for c in conditions)


def _of(spec: StageSpec) -> str:
    """Whose stage it is where several have the same name: the regenerator that draws."""
    return str(spec.worker.get("variant", ""))
