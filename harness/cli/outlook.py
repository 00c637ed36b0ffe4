"""What a plan will take: legs and shares, shards to do, hours, memory and disk, from the cards' estimates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from harness import legs
from harness.plan import Plan
from harness.specs import StageSpec
from harness.store import Store

_PNG_BYTES_PER_PIXEL = 1.6  # measured on photographs; drawings take less
_PLAIN = 140  # characters a line where nobody looks at it live


def outlook(plan: Plan, store: Path, gpus: int = 0, gpu_memory_gb: float | None = None) -> dict[str, Any]:
    """The plan as plain data: chains, stages with fingerprints, shards missing, expected cost.

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
    for chain in plan.chains:
        for spec in chain.stages:
            missing = [s for s in chain.shards if not there.path(spec.stage, spec.fingerprint, s.key).exists()]
            rows = sum(s.rows.num_rows for s in missing)
            images += rows if spec.seconds_per_image else 0
            seconds += rows * spec.seconds_per_image
            stages.append({
                "defense": chain.defense, "bench": chain.bench, "stage": spec.stage, "of": _of(spec),
                "fingerprint": spec.fingerprint, "shards": len(chain.shards), "missing_shards": len(missing),
                "missing_rows": rows,
            })  # fmt: skip
    excluded = sum(s.rows.num_rows - s.rows["excluded"].null_count for c in plan.chains for s in c.shards)
    return {
        "run": plan.name,
        "profile": plan.profile.name,
        "backbone": plan.backbone.name,
        "rows": sum(c.num_rows for c in plan.chains),
        "excluded": excluded,
        "left_out": [pair._asdict() for pair in plan.left_out],
        "images_to_draw": images,
        "legs": [
            [{"stages": list(s.stages), "gpu": s.gpu} for s in leg.stations]
            for leg in legs.cut(plan, gpus, gpu_memory_gb)
        ],
        "memory_gb": {name: memory for name in plan.stage_names() if (memory := legs.memory(plan, name))},
        "hours": round(seconds / 3600 / max(gpus, 1), 3),
        "disk_mb": round(images * plan.backbone.width * plan.backbone.height * _PNG_BYTES_PER_PIXEL / 1e6, 1),
        "stages": stages,
    }


def _of(spec: StageSpec) -> str:
    """Whose stage it is where several have the same name: the regenerator that draws."""
    return str(spec.worker.get("variant", ""))


def show(found: dict[str, Any]) -> None:
    """The outlook as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _PLAIN)
    title = f"{found['run']}  (profile {found['profile']}, backbone {found['backbone']})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("defense", "bench", "stage", "of", "fingerprint", "shards to do", "rows to do"):
        table.add_column(name, justify="right" if name.endswith("do") else "left")
    for s in found["stages"]:
        to_do = f"{s['missing_shards']} of {s['shards']}"
        table.add_row(s["defense"], s["bench"], s["stage"], s["of"], s["fingerprint"], to_do, str(s["missing_rows"]))
    console.print(table)
    for number, leg in enumerate(found["legs"], 1):
        stations = " | ".join(" -> ".join(s["stages"]) + (f" ({s['gpu']:g} of a GPU)" if s["gpu"] else "") for s in leg)
        console.print(f"leg {number}: {stations}", soft_wrap=True)
    memory = ", ".join(f"{stage} {gb:g} GB" for stage, gb in found["memory_gb"].items())
    console.print(f"memory of one copy: {memory}", soft_wrap=True)
    console.print(
        f"{found['rows']} rows ({found['excluded']} excluded by the guard), {found['images_to_draw']} images to draw: "
        f"about {found['hours']} hours of drawing, {found['disk_mb']} MB of disk",
        soft_wrap=True,
    )
