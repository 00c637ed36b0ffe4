"""The shapes world's geometric oracle as a scorer: what an image shows, read by rules on its pixels.

``shapes_oracle_star`` and ``_ring`` are 1 where such a shape was read, ``_striped`` where the background is striped,
else 0. ``shapes_oracle_scene`` is the reading as JSON:

    {"objects": [["star", "red"], ["square", "blue"]], "relation": "left of", "background": "gray", "texture": "plain"}

where a shape may be ``unknown`` and two objects stand from left to right or from top to bottom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import RowError
from harness.scorers import options
from harness.scorers.batching import Image, in_micro_batches
from harness.shapes import world

COLUMNS: dict[str, pa.DataType] = {
    "shapes_oracle_star": pa.int8(),
    "shapes_oracle_ring": pa.int8(),
    "shapes_oracle_striped": pa.int8(),
    "shapes_oracle_scene": pa.string(),
}
PAIR = False
LIBRARIES = ("numpy", "scipy", "pillow")
MICRO_BATCH = 1


def weights(params: Mapping[str, Any]) -> list[Path]:
    """No files: nothing is learned."""
    options("shapes_oracle", params, {})
    return []


def load(params: Mapping[str, Any]) -> ShapesOracle:
    """The oracle.

    Raises:
        UserError: a parameter; it has none.
    """
    options("shapes_oracle", params, {})
    return ShapesOracle()


class ShapesOracle:
    """A loaded oracle (its templates are drawn at the first image)."""

    def __init__(self) -> None:
        from harness.shapes import oracle  # brings scipy.ndimage

        self._oracle = oracle

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Any]]:
        return in_micro_batches("shapes_oracle", images, self._read, lambda rows: rows, MICRO_BATCH)

    def _read(self, image: Image) -> dict[str, Any]:
        try:
            reading = self._oracle.read(image)
        except ValueError as error:
            raise RowError("image-size", str(error)) from error
        scene = reading.scene()
        content = {
            "objects": [[o.shape, o.colour] for o in scene.objects],
            "relation": scene.relation,
            "background": scene.background,
            "texture": scene.texture,
        }
        return {
            "shapes_oracle_star": int(self._oracle.has(reading, "star")),
            "shapes_oracle_ring": int(self._oracle.has(reading, "ring")),
            "shapes_oracle_striped": int(reading.texture == world.STYLE_TEXTURE),
            "shapes_oracle_scene": json.dumps(content),
        }
