"""What a plan will take: phases and shares, shards to do, hours, memory and disk, from the cards' estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.pipeline import schedule
from harness.pipeline.plan import Plan
from harness.pipeline.stage_specs import StageSpec
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
        "stages": stages,
    }


def _of(spec: StageSpec) -> str:
    """Whose stage it is where several have the same name: the regenerator that draws."""
    return str(spec.worker.get("variant", ""))
