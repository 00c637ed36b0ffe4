"""Numbers of a whole set of images: the Frechet distance of a variant's images to the undefended ones (FID).

Features are too long for a run's scores; they stay in the store, and only what they come to goes into the cells. FID
falls with the number of images: n is part of the cell, and figures of different n do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.metrics import frechet
from harness.metrics.cells import FID, Cell
from harness.metrics.comparison import BASE
from harness.metrics.conservation import present
from harness.metrics.measure import Provenances
from harness.pipeline.conditions import Condition, Variant
from harness.pipeline.plan import Plan
from harness.pipeline.request import BASELINE
from harness.store.shards import Store, read

SCORER = "inception"
COLUMN = "inception_features"
REFERENCE = f"{BASELINE}/{BASE}"


def measure(plan: Plan, store: Store, known: Provenances) -> list[Cell]:
    """A cell for each variant whose images and whose undefended counterparts have features; else none.

    Args:
        plan: a run, complete.
        store: where its shards lie.
        known: see ``harness.metrics.measure.provenances``.
    """
    references = {c.bench: c for c in plan.conditions if c.defense == BASELINE}
    moments: dict[str, frechet.Gaussian | None] = {}
    cells = []
    for condition in plan.conditions:
        plain = references.get(condition.bench)
        for variant in condition.variants:
            if plain is None or not _spec(variant) or (condition.defense, variant.name) == (BASELINE, BASE):
                continue
            if condition.bench not in moments:
                moments[condition.bench] = _moments(_features(plain, plain.variants[0], store).features)
            cells.append(_cell(plan, condition, variant, store, moments[condition.bench], known))
    return cells


def _cell(
    plan: Plan,
    condition: Condition,
    variant: Variant,
    store: Store,
    reference: frechet.Gaussian | None,
    known: Provenances,
) -> Cell:
    features, errors, excluded = _features(condition, variant, store)
    own = _moments(features)
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
        n=len(features),
        value=frechet.frechet(own, reference) if own is not None and reference is not None else None,
        errors=errors,
        excluded=excluded,
        low=None,
        high=None,
        interval="none",
        fingerprints=provenance.fingerprints,
        subset=f"{rows}/{provenance.total}" if rows != provenance.total else None,
        method=dict(provenance.method),
        settings=dict(provenance.settings),
    )


def _spec(variant: Variant) -> tuple[str, str] | None:
    found: Mapping[str, str] = {s.stage: s.fingerprint for s in variant.scores}
    stage = f"score-{SCORER}"
    return (stage, found[stage]) if stage in found else None


class _Set(NamedTuple):
    """Features of the images that have some, (n, 2048), and how many rows have none."""

    features: NDArray[np.float32]
    errors: int
    excluded: int


def _features(condition: Condition, variant: Variant, store: Store) -> _Set:
    spec = _spec(variant)
    assert spec is not None
    images = variant.images.stage, variant.images.fingerprint
    scores = pa.concat_tables([read(store.path(*spec, s.key), [COLUMN]) for s in condition.shards])
    outcomes = pa.concat_tables([read(store.path(*images, s.key), ["excluded"]) for s in condition.shards])
    there, excluded = present(scores[COLUMN]), present(outcomes["excluded"])
    values = scores[COLUMN].drop_null().combine_chunks()
    features = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
    return _Set(features, int((~there & ~excluded).sum()), int(excluded.sum()))


def _moments(features: NDArray[np.float32]) -> frechet.Gaussian | None:
    return frechet.Gaussian.of(features) if len(features) > 1 else None
