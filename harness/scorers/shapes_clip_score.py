"""CLIP score of an image and its prompt by the shapes world's own CLIP, columns as ``clip_score``'s.

Under its own name, since its numbers are not ViT-L/14's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _clip
from harness.scorers._sources import model

COLUMNS: dict[str, pa.DataType] = _clip.score_columns("shapes_clip_score")
PAIR = False
TEXT = True
LIBRARIES = _clip.LIBRARIES
MICRO_BATCH = _clip.MICRO_BATCH
DEFAULTS: dict[str, Any] = {**_clip.LARGE, "source": "package:harness/shapes/weights/clip", "revision": None}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The model's files.

    Raises:
        UserError: an unknown parameter, no such folder.
    """
    return model("shapes_clip_score", params, DEFAULTS).files


def load(params: Mapping[str, Any]) -> _clip.Score:
    """The model in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    return _clip.Score("shapes_clip_score", _clip.load_clip("shapes_clip_score", params, DEFAULTS))
