"""Numbers of a whole set of images: the Frechet distance of a variant's images to the undefended ones (FID).

Features are too long for a run's scores; they stay in the store, and only what they come to goes into the cells. FID
falls with the number of images: n is part of the cell, and figures of different n do not compare. Both sides are the
same rows: those that both have features of.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.metrics import frechet
from harness.metrics.cells import FID, Cell
from harness.metrics.comparison import BASE, Mask
from harness.metrics.conservation import present
from harness.metrics.measure import Provenances
from harness.pipeline.conditions import Condition, Variant
from harness.pipeline.plan import Plan
from harness.pipeline.request import BASELINE
from harness.store.shards import Store, read

SCORER = "inception"
COLUMN = "inception_features"
REFERENCE = f"{BASELINE}/{BASE}"


def measure(plan: Plan, store: Store, known: Provenances, scores: pa.Table) -> list[Cell]:
    """A cell for each variant that has features of both its own images and the undefended ones.

    Args:
        plan: a run, complete.
        store: where its shards lie.
        known: see ``harness.metrics.measure.provenances``.
        scores: the run's rows; those that are excluded count on neither side.
    """
    references = {c.bench: c for c in plan.conditions if c.defense == BASELINE}
    barred = scores.filter(pc.is_valid(scores["excluded"])).select(["row_id", "sample"])
    excluded = set(zip(*(barred[name].to_pylist() for name in barred.column_names), strict=True))
    plain_features: dict[str, _Set] = {}
    moments: dict[tuple[str, bytes], frechet.Gaussian | None] = {}
    cells = []
    for condition in plan.conditions:
        plain = references.get(condition.bench)
        for variant in condition.variants:
            if plain is None or not _spec(variant) or (condition.defense, variant.name) == (BASELINE, BASE):
                continue
            if condition.bench not in plain_features:
                plain_features[condition.bench] = _features(plain, plain.variants[0], store, excluded)
            reference, own = plain_features[condition.bench], _features(condition, variant, store, excluded)
            both = reference.there & own.there
            place = condition.bench, both.tobytes()
            if place not in moments:
                moments[place] = _moments(reference.values[both])
            distance = _distance(_moments(own.values[both]), moments[place])
            cells.append(_cell(plan, condition, variant, known, _Outcome(distance, both, own.excluded)))
    return cells


class _Outcome(NamedTuple):
    """A distance, the rows it is over, and those that no method may draw."""

    distance: float | None
    both: Mask
    excluded: Mask


def _cell(plan: Plan, condition: Condition, variant: Variant, known: Provenances, outcome: _Outcome) -> Cell:
    provenance = known[condition.defense, variant.name, condition.bench]
    rows = provenance.rows.num_rows
    return Cell(
        profile=plan.profile.name,
        backbone=condition.shards[0].rows["backbone"][0].as_py(),
        defense=condition.defense,
        variant=variant.name,
        bench=condition.bench,
        concept=condition.concept,
        metric=FID,
        scorer=SCORER,
        policy=None,
        main=False,
        reference=REFERENCE,
        k=None,
        n=int(outcome.both.sum()),
        value=outcome.distance,
        errors=int((~outcome.both & ~outcome.excluded).sum()),
        excluded=int(outcome.excluded.sum()),
        low=None,
        high=None,
        interval="none",
        fingerprints=provenance.fingerprints,
        subset=f"{rows}/{provenance.total}" if rows != provenance.total else None,
        method=dict(provenance.method),
        settings=dict(provenance.settings),
    )


def _spec(variant: Variant) -> tuple[str, str] | None:
    fingerprints: Mapping[str, str] = {s.stage: s.fingerprint for s in variant.scores}
    stage = f"score-{SCORER}"
    return (stage, fingerprints[stage]) if stage in fingerprints else None


class _Set(NamedTuple):
    """Features of a condition's rows, in their order."""

    values: NDArray[np.float32]  # (rows, 2048); of a row without features, anything
    there: Mask  # which rows have some and are not excluded
    excluded: Mask


def _features(condition: Condition, variant: Variant, store: Store, excluded: Set[tuple[str, int]]) -> _Set:
    spec = _spec(variant)
    assert spec is not None
    scores = pa.concat_tables([read(store.path(*spec, s.key), ["row_id", "sample", COLUMN]) for s in condition.shards])
    keys = zip(scores["row_id"].to_pylist(), scores["sample"].to_pylist(), strict=True)
    barred = np.array([key in excluded for key in keys], bool)
    there = present(scores[COLUMN])
    column = scores[COLUMN].drop_null().combine_chunks()
    values = np.zeros((len(there), column.type.list_size), np.float32)
    values[there] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return _Set(values, there & ~barred, barred)


def _distance(own: frechet.Gaussian | None, reference: frechet.Gaussian | None) -> float | None:
    return None if own is None or reference is None else frechet.frechet(own, reference)


def _moments(features: NDArray[np.float32]) -> frechet.Gaussian | None:
    return frechet.Gaussian.of(features) if len(features) > 1 else None
