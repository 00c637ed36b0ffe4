"""Numbers of a whole set of pictures: the Frechet distance of a variant's pictures to the undefended ones (FID).

Features are too long for a run's scores; they stay in the store, and only what they come to goes into the cells. FID
falls with the number of pictures: n is part of the cell, and figures of different n do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.cells import FID, Cell
from harness.chain import Chain, Variant
from harness.compare import BASE
from harness.conservation import present
from harness.measure import Origins
from harness.metrics import fid
from harness.plan import BASELINE, Plan
from harness.store import Store, read

SCORER = "inception"
COLUMN = "inception_features"
REFERENCE = f"{BASELINE}/{BASE}"


def measure(plan: Plan, store: Store, known: Origins) -> list[Cell]:
    """A cell for each variant whose pictures and whose undefended counterparts have features; else none.

    Args:
        plan: a run, complete.
        store: where its shards lie.
        known: see ``harness.measure.origins``.
    """
    references = {c.bench: c for c in plan.chains if c.defense == BASELINE}
    moments: dict[str, fid.Gaussian | None] = {}
    cells = []
    for chain in plan.chains:
        plain = references.get(chain.bench)
        for variant in chain.variants:
            if plain is None or not _spec(variant) or (chain.defense, variant.name) == (BASELINE, BASE):
                continue
            if chain.bench not in moments:
                moments[chain.bench] = _moments(_features(plain, plain.variants[0], store).features)
            cells.append(_cell(plan, chain, variant, store, moments[chain.bench], known))
    return cells


def _cell(
    plan: Plan, chain: Chain, variant: Variant, store: Store, reference: fid.Gaussian | None, known: Origins
) -> Cell:
    features, errors, excluded = _features(chain, variant, store)
    own = _moments(features)
    origin = known[chain.defense, variant.name, chain.bench]
    rows = origin.rows.num_rows
    return Cell(
        profile=plan.profile.name,
        backbone=chain.shards[0].rows["backbone"][0].as_py(),
        defense=chain.defense,
        variant=variant.name,
        bench=chain.bench,
        concept=chain.concept,
        metric=FID,
        scorer=SCORER,
        policy=None,
        main=False,
        reference=REFERENCE,
        k=None,
        n=len(features),
        value=fid.frechet(own, reference) if own is not None and reference is not None else None,
        errors=errors,
        excluded=excluded,
        low=None,
        high=None,
        interval="none",
        fingerprints=origin.fingerprints,
        subset=f"{rows}/{origin.total}" if rows != origin.total else None,
        method=dict(origin.method),
        settings=dict(origin.settings),
    )


def _spec(variant: Variant) -> tuple[str, str] | None:
    found: Mapping[str, str] = {s.stage: s.fingerprint for s in variant.scores}
    stage = f"score-{SCORER}"
    return (stage, found[stage]) if stage in found else None


class _Set(NamedTuple):
    """Features of the pictures that have some, (n, 2048), and how many rows have none."""

    features: NDArray[np.float32]
    errors: int
    excluded: int


def _features(chain: Chain, variant: Variant, store: Store) -> _Set:
    spec = _spec(variant)
    assert spec is not None
    images = variant.images.stage, variant.images.fingerprint
    scores = pa.concat_tables([read(store.path(*spec, s.key), [COLUMN]) for s in chain.shards])
    fates = pa.concat_tables([read(store.path(*images, s.key), ["excluded"]) for s in chain.shards])
    there, excluded = present(scores[COLUMN]), present(fates["excluded"])
    values = scores[COLUMN].drop_null().combine_chunks()
    features = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
    return _Set(features, int((~there & ~excluded).sum()), int(excluded.sum()))


def _moments(features: NDArray[np.float32]) -> fid.Gaussian | None:
    return fid.Gaussian.of(features) if len(features) > 1 else None
