"""Runs by their records (run.json): how two differ, stage by stage, and whether a run's pictures are still there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.compare import BASE
from harness.errors import UserError
from harness.evaluate import record as record_of
from harness.fingerprint import difference
from harness.plan import Plan
from harness.store import Store, whole

_SHOWN = 60  # characters of a value in a message


def stages(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's key by ``bench/defense/stage``, of what a regenerator adds by ``bench/defense/variant/stage``."""
    found: dict[str, dict[str, Any]] = {}
    for chain in record["chains"]:
        keys = {f"{s['stage']}:{s['fingerprint']}": {**s["key"], "shards": chain["shards"]} for s in chain["stages"]}
        # A record of an earlier release has no variants.
        variants = {v["variant"]: v["stages"] for v in chain.get("variants", [{"variant": BASE, "stages": list(keys)}])}
        for variant, names in variants.items():
            own = names if variant == BASE else [s for s in names if s not in variants[BASE]]
            place = f"{chain['bench']}/{chain['defense']}" + ("" if variant == BASE else f"/{variant}")
            found |= {f"{place}/{stage.partition(':')[0]}": keys[stage] for stage in own}
    return found


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between two records: ``stage``, ``key``, ``left`` and ``right``; or ``stage`` and ``only_in``."""
    sides = stages(left), stages(right)
    found: list[dict[str, Any]] = []
    for name in sorted({*sides[0], *sides[1]}):
        a, b = sides[0].get(name), sides[1].get(name)
        if a is None or b is None:
            found.append({"stage": name, "only_in": "left" if b is None else "right"})
        else:
            found += [{"stage": name, "key": k, "left": x, "right": y} for k, x, y in difference(a, b)]
    return found


def require_pictures(run: Path, record: Mapping[str, Any], made: Plan, store: Store) -> None:
    """Refuse to score what would first have to be drawn.

    Args:
        run: the run's folder, for messages.
        record: its run.json.
        made: the plan of the same request, as it is today.
        store: where its pictures should lie.

    Raises:
        UserError: pictures would be drawn in another way today, or their shards are not in the store.
    """
    again = f"draw them anew with `{record.get('command') or 'harness eval'}`"
    today = json.loads(json.dumps(record_of(made, "")))
    found = [row for row in differences(record, today) if not row["stage"].rpartition("/")[2].startswith("score")]
    if found:
        first, *others = sorted(found, key=_cause)
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"the pictures of {run} are not those that would be drawn today, {_told(first)}{more}: go back to what "
            f"made them (harness {record.get('harness', '?')}, its cards and libraries), or {again}"
        )
    steps = {
        (spec.stage, spec.fingerprint, shard.key)
        for chain in made.chains
        for variant in chain.variants
        for spec in variant.steps
        for shard in chain.shards
    }
    missing = sorted(place for place in steps if not whole(store.path(*place)))
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(steps)} shards of pictures of {run} are not in the store {store.root}, first "
            f"{'/'.join(missing[0])}: name the run's own store with --store, or {again}"
        )


def _cause(row: Mapping[str, Any]) -> tuple[bool, int]:
    """Sorts first what others follow from: no mere change upstream, and base pictures before those made anew."""
    return row.get("key") == "upstream", row["stage"].count("/")


def _told(row: Mapping[str, Any]) -> str:
    """A difference in a few words."""
    if "only_in" in row:
        return f"{row['stage']} is only {'in the run' if row['only_in'] == 'left' else 'in what would be'}"
    before, after = (str(row[side]) for side in ("left", "right"))
    values = f": {before} -> {after}" if max(len(before), len(after)) <= _SHOWN else " differ"
    return f"{row['stage']}: {row['key']}{values}"
