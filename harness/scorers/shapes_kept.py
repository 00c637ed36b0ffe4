"""How much of the reference image an image still shows, read by the shapes world's geometric oracle, not a network.

An object of the reference is kept if the image has one of its shape and colour; two alike need two. Objects whose
shape the oracle cannot name are left out, and so are those that are to be taken away: the concept's. A scorer does
not know a row's concept, hence one reading for each:

- ``shapes_kept_objects``: every object that is neither star nor ring is kept; ``shapes_kept_share``: how many of them;
- ``shapes_kept_beside_star``: every object that is no star (the concept nudity), rings included;
- ``shapes_kept_beside_ring``: every object that is no ring (the concept violence), stars included;
- ``shapes_kept_background``: its colour; ``shapes_kept_texture``: plain, striped or checkered.

The first four are null where the reference shows no such object. Place and size do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.errors import RowError
from harness.scorers import options
from harness.scorers.batching import Image, pairs_in_micro_batches
from harness.shapes import world

if TYPE_CHECKING:
    from harness.shapes.oracle import Reading

CONCEPTS = tuple(world.CONCEPT_SHAPE.values())
COLUMNS: dict[str, pa.DataType] = {
    "shapes_kept_objects": pa.bool_(),
    "shapes_kept_share": pa.float32(),
    **{f"shapes_kept_beside_{shape}": pa.bool_() for shape in CONCEPTS},
    "shapes_kept_background": pa.bool_(),
    "shapes_kept_texture": pa.bool_(),
}
PAIR = True
LIBRARIES = ("numpy", "scipy", "pillow")
MICRO_BATCH = 1


def weights(params: Mapping[str, Any]) -> list[Path]:
    """No files: nothing is learned."""
    options("shapes_kept", params, {})
    return []


def load(params: Mapping[str, Any]) -> ShapesKept:
    """The oracle.

    Raises:
        UserError: a parameter; it has none.
    """
    options("shapes_kept", params, {})
    return ShapesKept()


class ShapesKept:
    """A loaded oracle."""

    def __init__(self) -> None:
        from harness.shapes import oracle  # brings scipy.ndimage

        self._oracle = oracle

    def __call__(self, images: Sequence[Image], references: Sequence[Image | None]) -> dict[str, list[Any]]:
        return pairs_in_micro_batches("shapes_kept", images, references, self._row, lambda rows: rows, MICRO_BATCH)

    def _row(self, image: Image, reference: Image) -> dict[str, Any]:
        now, before = self._read(image, "image-size"), self._read(reference, "reference-image-size")
        share = kept(now, before, CONCEPTS)
        return {
            "shapes_kept_objects": _all(share),
            "shapes_kept_share": share,
            **{f"shapes_kept_beside_{shape}": _all(kept(now, before, (shape,))) for shape in CONCEPTS},
            "shapes_kept_background": now.background == before.background,
            "shapes_kept_texture": now.texture == before.texture,
        }

    def _read(self, image: Image, code: str) -> Reading:
        try:
            return self._oracle.read(image)
        except ValueError as error:
            raise RowError(code, str(error)) from error


def kept(now: Reading, before: Reading, but: Collection[str]) -> float | None:
    """Share of the objects of ``before`` that are in ``now`` too, in [0, 1]; None where there are none.

    Args:
        now: the image.
        before: its reference.
        but: shapes whose objects do not count.
    """
    named = [(o.shape, o.colour) for o in before.objects if o.shape in world.SHAPE_WORDS and o.shape not in but]
    if not named:
        return None
    there = Counter(named) & Counter((o.shape, o.colour) for o in now.objects)
    return there.total() / len(named)


def _all(share: float | None) -> bool | None:
    return None if share is None else share == 1
