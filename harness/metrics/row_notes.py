"""What a run's rows say of one another: rows that stand out of a comparison, seeds that collide, unlike captions.

Each is known only once all rows are there. What is found is written into the rows (``excluded``, ``prompt_note``,
``regen_note``), so that whatever reads them counts alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.store.schema import REGENERATION

ELSEWHERE = "other-method:"  # begins the reason of a row that this method may draw and another of the run may not
SEED_COLLISION = "seed-collision"
UNLIKE = "unlike"  # ends the note on a caption that resembles its image far less than the run's other captions do
COSINES = ("unsafe_caption_cosine", "safe_caption_cosine")

_SEEDS = 1 << 32  # that a CPU generator tells apart: it takes the lower 32 bits
_FEWEST = 8  # captions that a typical cosine can be told from
_SPREADS = 4.0  # standard deviations, as the median absolute deviation gives them
_LEAST_SPREAD = 0.01  # of cosines: where all but a few are equal, a little less is not far below

Mask = NDArray[np.bool_]


def compared(scores: pa.Table) -> pa.Table:
    """``scores`` (schema SCORE, of one run) with all that its rows say of one another."""
    scores = _annotated(scores, "prompt_note", SEED_COLLISION, seeds_collide(scores))
    for column in COSINES:
        if column in scores.column_names:
            code = f"{column.removesuffix('_cosine').replace('_', '-')}-{UNLIKE}"
            scores = _annotated(scores, "regen_note", code, far_below(scores, column))
    return stand_out(scores)


def stand_out(scores: pa.Table) -> pa.Table:
    """Excludes a row that one method may not draw from every method: what is compared is over the same rows.

    Its scores become null, as those of any excluded row; its reason is the other method's, after ``ELSEWHERE``.
    """
    keys = list(zip(*(scores[name].to_pylist() for name in ("bench", "row_id", "sample")), strict=True))
    own = scores["excluded"].to_pylist()
    reasons = {key: reason for key, reason in zip(keys, own, strict=True) if reason is not None}
    out = np.array([reason is None and key in reasons for key, reason in zip(keys, own, strict=True)], bool)
    if not out.any():
        return scores
    reasons_now = [f"{ELSEWHERE}{reasons[key]}" if o else reason for key, o, reason in zip(keys, out, own, strict=True)]
    scores = _replaced(scores, "excluded", pa.array(reasons_now, pa.string()))
    mask = pa.array(out)
    for name in [n for n in scores.column_names if n not in REGENERATION.names]:
        scores = _replaced(
            scores, name, pc.if_else(mask, pa.scalar(None, scores.schema.field(name).type), scores[name])
        )
    return scores


def seeds_collide(scores: pa.Table) -> Mask:
    """Rows of one prompt, guidance and size whose seeds differ and yet draw one image: they agree modulo 2^32."""
    colliding = np.zeros(scores.num_rows, bool)
    if "prompt_read" not in scores.column_names or (pc.max(scores["seed"]).as_py() or 0) < _SEEDS:
        return colliding
    names = ("profile", "backbone", "defense", "variant", "bench", "prompt_read", "guidance", "width", "height")
    alike: dict[tuple[object, ...], list[int]] = {}
    seeds = scores["seed"].to_pylist()
    for i, key in enumerate(zip(*(scores[name].to_pylist() for name in names), strict=True)):
        if key[5] is not None and seeds[i] is not None:
            alike.setdefault((*key, seeds[i] % _SEEDS), []).append(i)
    for places in alike.values():
        if len({seeds[i] for i in places}) > 1:
            colliding[places] = True
    return colliding


def far_below(scores: pa.Table, column: str) -> Mask:
    """Where a cosine of image and caption lies far below the others of the same captioner and concept."""
    outlying = np.zeros(scores.num_rows, bool)
    values = np.array(scores[column].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    captioners = list(zip(scores["vlm"].to_pylist(), scores["concept"].to_pylist(), strict=True))
    for captioner in dict.fromkeys(captioners):
        mine = np.array([one == captioner for one in captioners], bool) & np.isfinite(values)
        if mine.sum() >= _FEWEST:
            typical = float(np.median(values[mine]))
            spread = 1.4826 * float(np.median(np.abs(values[mine] - typical)))
            outlying |= mine & (values < typical - _SPREADS * max(spread, _LEAST_SPREAD))
    return outlying


def count_notes(rows: pa.Table, columns: Iterable[str]) -> dict[str, int]:
    """How many rows carry each code of their notes, the most frequent first."""
    notes: Counter[str] = Counter()
    for name in columns:
        if name in rows.column_names:
            for entry in pc.value_counts(rows[name].drop_null()).to_pylist():
                for code in dict.fromkeys(entry["values"].split(",")):
                    notes[code] += entry["counts"]
    return dict(notes.most_common())


def _annotated(scores: pa.Table, column: str, code: str, where: Mask) -> pa.Table:
    """``scores`` with ``code`` added to the notes in ``column`` of some rows."""
    if not where.any():
        return scores
    notes = scores[column].to_pylist()
    joined = [",".join(n for n in (note, code) if n) if here else note for note, here in zip(notes, where, strict=True)]
    return _replaced(scores, column, pa.array(joined, pa.string()))


def _replaced(scores: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return scores.set_column(scores.column_names.index(name), scores.schema.field(name), values)
