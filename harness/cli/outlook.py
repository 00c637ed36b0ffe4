"""What a plan will take: shards to do, hours, memory and disk, from the cards' estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.plan import Plan
from harness.store import Store

_PNG_BYTES_PER_PIXEL = 1.6  # measured on photographs; drawings take less


def outlook(plan: Plan, store: Path) -> dict[str, Any]:
    """The plan as plain data: chains, stages with fingerprints, shards missing, expected cost."""
    there = Store(store)
    stages = []
    images = 0
    for chain in plan.chains:
        for spec in chain.stages:
            missing = [s for s in chain.shards if not there.path(spec.stage, spec.fingerprint, s.key).exists()]
            rows = sum(s.rows.num_rows for s in missing)
            images += rows if spec.kind == "generate" else 0
            stages.append({
                "defense": chain.defense, "bench": chain.bench, "stage": spec.stage, "fingerprint": spec.fingerprint,
                "shards": len(chain.shards), "missing_shards": len(missing), "missing_rows": rows,
            })  # fmt: skip
    backbone = plan.backbone
    excluded = sum(s.rows.num_rows - s.rows["excluded"].null_count for c in plan.chains for s in c.shards)
    return {
        "run": plan.name,
        "profile": plan.profile.name,
        "backbone": backbone.name,
        "rows": sum(c.num_rows for c in plan.chains),
        "excluded": excluded,
        "images_to_draw": images,
        "legs": [plan.stage_names()],
        "memory_gb": backbone.memory_gb,
        "hours": round(images * backbone.seconds_per_image / 3600, 3),
        "disk_mb": round(images * backbone.width * backbone.height * _PNG_BYTES_PER_PIXEL / 1e6, 1),
        "stages": stages,
    }


def show(found: dict[str, Any]) -> None:
    """The outlook as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['run']}  (profile {found['profile']}, backbone {found['backbone']})")
    for name in ("defense", "bench", "stage", "fingerprint", "shards to do", "rows to do"):
        table.add_column(name, justify="right" if name.endswith("do") else "left")
    for s in found["stages"]:
        to_do = f"{s['missing_shards']} of {s['shards']}"
        table.add_row(s["defense"], s["bench"], s["stage"], s["fingerprint"], to_do, str(s["missing_rows"]))
    console = Console()
    console.print(table)
    for number, leg in enumerate(found["legs"], 1):
        console.print(f"leg {number}: {' -> '.join(leg)}; one copy of the backbone takes {found['memory_gb']} GB")
    console.print(
        f"{found['rows']} rows ({found['excluded']} excluded by the guard), {found['images_to_draw']} images to draw: "
        f"about {found['hours']} device-hours on one device, {found['disk_mb']} MB of disk"
    )
