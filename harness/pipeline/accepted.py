"""``--accept-change``: take stored shards that other code or other libraries made, knowingly.

A stage's stored results are taken where their key differs from today's in nothing but what was accepted, and only
where every shard of the condition is there: what is computed anew is never mixed with them under one fingerprint. What
differed is stamped on every number (``Variant.accepted`` -> cells, report, run.json). Weights and card values are never
accepted: other weights are another model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.pipeline.conditions import Condition, Variant
from harness.pipeline.plan import Plan
from harness.pipeline.spec import Source, StageSpec
from harness.store import fingerprint
from harness.store.shards import Store, is_complete

CHANGES = ("code", "libraries")
_FOLLOWS = "artefact"  # fingerprint of a built defense: of values that stand in the key too, and of its code


def check(accepted: Iterable[str]) -> None:
    """Refuse words that are not in ``CHANGES``.

    Raises:
        UserError: an unknown word.
    """
    for word in accepted:
        if word not in CHANGES:
            raise UserError(
                f"--accept-change {word!r}{nearest(word, CHANGES)} (there are: {', '.join(CHANGES)}; weights and card "
                "values are never accepted)"
            )


def adopt(made: Plan, store: Store, accepted: Iterable[str]) -> Plan:
    """The plan in which stages whose complete stored results differ in accepted keys only are replaced by those.

    Args:
        made: as it would be computed today.
        store: where results lie.
        accepted: words of ``CHANGES``.

    Raises:
        UserError: an unknown word.
    """
    words = frozenset(accepted)
    check(words)
    if not words:
        return made
    renamed: dict[str, str] = {}  # fingerprint of today -> the one taken
    adoptions = [_Adoption(condition, store, words, renamed) for condition in made.conditions]
    for scores in (False, True):  # scorers may compare with another condition's images
        for adoption in adoptions:
            adoption.take(scores)
    return dataclasses.replace(made, conditions=tuple(a.condition() for a in adoptions))


class _Adoption:
    """One condition's stages, each with the stored results in its place, in the order in which they read each other."""

    def __init__(self, condition: Condition, store: Store, words: frozenset[str], renamed: dict[str, str]) -> None:
        self._condition, self._store, self._accepted, self._renamed = condition, store, words, renamed
        self._specs: dict[tuple[str, str], StageSpec] = {}

    def take(self, scores: bool) -> None:
        """Decide for the stages that score, or for those before them."""
        for spec in self._condition.stages:
            if (spec.kind == "score") == scores:
                taken = self._take(_with_sources(spec, self._renamed))
                self._specs[spec.stage, spec.fingerprint] = taken
                self._renamed[spec.fingerprint] = taken.fingerprint

    def condition(self) -> Condition:
        """The condition with its new stages."""

        def of(specs: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
            return tuple(self._specs[s.stage, s.fingerprint] for s in specs)

        variants = [dataclasses.replace(v, steps=of(v.steps), scores=of(v.scores)) for v in self._condition.variants]
        return dataclasses.replace(self._condition, variants=tuple(variants))

    def _take(self, spec: StageSpec) -> StageSpec:
        """``spec``, or the stored results that differ from it in nothing but what is accepted."""
        if self._is_complete(spec.stage, spec.fingerprint):
            return spec
        wanted = _without(spec.key, self._accepted)
        for folder in sorted((self._store.root / spec.stage).glob("*/stage.json"), key=_newest, reverse=True):
            stored = _read(folder)
            name = folder.parent.name
            if stored is None or _without(stored, self._accepted) != wanted or not self._is_complete(spec.stage, name):
                continue
            differs = tuple(fingerprint.difference(stored, json.loads(json.dumps(spec.key))))
            return dataclasses.replace(spec, key=stored, fingerprint=name, accepted=differs)
        return spec

    def _is_complete(self, stage: str, name: str) -> bool:
        return all(is_complete(self._store.path(stage, name, s.key)) for s in self._condition.shards)


def _without(key: Mapping[str, Any], accepted: frozenset[str]) -> Any:
    """A key less what is accepted, as its file has it."""
    left_out = accepted | {_FOLLOWS} if "code" in accepted else accepted
    return json.loads(json.dumps({k: v for k, v in key.items() if k not in left_out}))


def _with_sources(spec: StageSpec, renamed: Mapping[str, str]) -> StageSpec:
    """``spec`` reading the fingerprints that were taken; its own follows from its key."""

    def of(name: Any) -> Any:
        return renamed.get(name, name) if isinstance(name, str) else [of(n) for n in name]

    def source(s: Source) -> Source:
        return s._replace(fingerprint=of(s.fingerprint))

    key = {name: of(value) if name in ("upstream", "reference") else value for name, value in spec.key.items()}
    return dataclasses.replace(
        spec,
        key=key,
        upstream=tuple(map(source, spec.upstream)),
        reference=source(spec.reference) if spec.reference else None,
        fingerprint=spec.fingerprint if key == spec.key else fingerprint.digest(key),
    )


def _newest(path: Path) -> float:
    return path.stat().st_mtime


def _read(path: Path) -> dict[str, Any] | None:
    """A stage's stored key; None where it cannot be read."""
    try:
        key = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return key if isinstance(key, dict) else None


def accepted_change(variant: Variant) -> str:
    """A few words on how the stored results behind a variant's numbers differ from today's code; empty: not at all."""
    parts = []
    for spec in variant.stages:
        if spec.accepted:
            values = ", ".join(f"{name} {before} instead of {now}" for name, before, now in spec.accepted)
            parts.append(f"{spec.stage}: {values}")
    return "; ".join(parts)
