"""Runs by their records (run.json): how two differ, stage by stage, and whether a run's images are still there."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics.comparison import BASE
from harness.pipeline.plan import Plan
from harness.pipeline.request import Request
from harness.pipeline.spec import StageSpec
from harness.store.fingerprint import difference
from harness.store.shards import Store, is_complete
from harness.store.version import __version__

_SHOWN = 60  # characters of a value in a message


def stages(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's key by ``bench/defense/stage``, of what a regenerator adds by ``bench/defense/variant/stage``."""
    by_place: dict[str, dict[str, Any]] = {}
    for condition in record["conditions"]:
        keys = {
            f"{s['stage']}:{s['fingerprint']}": {**s["key"], "shards": condition["shards"]} for s in condition["stages"]
        }
        # A record of an earlier release has no variants.
        variants = {
            v["variant"]: v["stages"] for v in condition.get("variants", [{"variant": BASE, "stages": list(keys)}])
        }
        for variant, names in variants.items():
            own = names if variant == BASE else [s for s in names if s not in variants[BASE]]
            place = f"{condition['bench']}/{condition['defense']}" + ("" if variant == BASE else f"/{variant}")
            by_place |= {f"{place}/{stage.partition(':')[0]}": keys[stage] for stage in own}
    return by_place


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between two records: ``stage``, ``key``, ``left`` and ``right``; or ``stage`` and ``only_in``."""
    sides = stages(left), stages(right)
    differing: list[dict[str, Any]] = []
    for name in sorted({*sides[0], *sides[1]}):
        a, b = sides[0].get(name), sides[1].get(name)
        if a is None or b is None:
            differing.append({"stage": name, "only_in": "left" if b is None else "right"})
        else:
            differing += [{"stage": name, "key": k, "left": x, "right": y} for k, x, y in difference(a, b)]
    return differing


def require_images(run: Path, record: Mapping[str, Any], made: Plan, store: Store) -> None:
    """Refuse to score what would first have to be drawn.

    Args:
        run: the run's folder, for messages.
        record: its run.json.
        made: the plan of the same request, as it is today.
        store: where its images should lie.

    Raises:
        UserError: images would be drawn in another way today, or their shards are not in the store.
    """
    again = f"draw them anew with `{record.get('command') or 'harness eval'}`"
    today = json.loads(json.dumps(record_of(made, "")))
    changed = [row for row in differences(record, today) if not row["stage"].rpartition("/")[2].startswith("score")]
    if changed:
        first, *others = sorted(changed, key=_cause)
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"the images of {run} are not those that would be drawn today, {_described(first)}{more}: go back to what "
            f"made them (harness {record.get('harness', '?')}, its cards and libraries), or {again}"
        )
    steps = {
        (spec.stage, spec.fingerprint, shard.key)
        for condition in made.conditions
        for variant in condition.variants
        for spec in variant.steps
        for shard in condition.shards
    }
    missing = sorted(place for place in steps if not is_complete(store.path(*place)))
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(steps)} shards of images of {run} are not in the store {store.root}, first "
            f"{'/'.join(missing[0])}: name the run's own store with --store, or {again}"
        )


def _cause(row: Mapping[str, Any]) -> tuple[bool, int]:
    """Sorts first what others follow from: no mere change upstream, and base images before those made anew."""
    return row.get("key") == "upstream", row["stage"].count("/")


def _described(row: Mapping[str, Any]) -> str:
    """A difference in a few words."""
    if "only_in" in row:
        return f"{row['stage']} is only {'in the run' if row['only_in'] == 'left' else 'in what would be'}"
    before, after = (str(row[side]) for side in ("left", "right"))
    values = f": {before} -> {after}" if max(len(before), len(after)) <= _SHOWN else " differ"
    return f"{row['stage']}: {row['key']}{values}"


def record_of(made: Plan, command: str) -> dict[str, Any]:
    """What run.json keeps: enough to trace every cell and to repeat the run."""
    return {
        "run": made.name,
        "harness": __version__,
        "command": command,
        "request": asdict(made.request),
        "profile": made.profile.name,
        "backbone": made.backbone.name,
        "left_out": [pair._asdict() for pair in made.left_out],
        "policies": {c: [p.model_dump(mode="json") for p in ps] for c, ps in made.policies.items()},
        "conditions": [
            {
                "defense": c.defense,
                "defended": c.defended,
                "bench": c.bench,
                "concept": c.concept,
                "rows": c.num_rows,
                "total_rows": c.total_rows,
                "shards": [s.key for s in c.shards],
                "variants": [
                    {
                        "variant": v.name,
                        "method": dict(v.method),
                        "settings": dict(v.settings),
                        "images": [v.images.stage, v.images.fingerprint],
                        "stages": [f"{s.stage}:{s.fingerprint}" for s in v.stages],
                    }
                    for v in c.variants
                ],
                "stages": [_stage(s) for s in c.stages],
            }
            for c in made.conditions
        ],
        "platform": {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()},
    }


def _stage(spec: StageSpec) -> dict[str, Any]:
    """A stage with the key of its results; ``accepted`` says how they differ from what would be computed today."""
    stage: dict[str, Any] = {"stage": spec.stage, "fingerprint": spec.fingerprint, "key": dict(spec.key)}
    if spec.accepted:
        stage["accepted"] = [dict(zip(("key", "stored", "today"), row, strict=True)) for row in spec.accepted]
    return stage


def request_of(record: Mapping[str, Any]) -> Request:
    """The request that a run.json was made from.

    Raises:
        UserError: it has none, or one of another harness.
    """
    try:
        choices: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["request"].items()}
        return Request(**choices)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"its run.json holds no request that this harness knows ({error})") from error
