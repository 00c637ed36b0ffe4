"""Cosine of the image features of an image and its reference by the shapes world's own CLIP.

It stands in for ``clip_image`` there, under its own name, since its numbers are not ViT-L/14's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _clip
from harness.scorers._sources import model

COLUMNS: dict[str, pa.DataType] = {"shapes_clip_cosine": pa.float32()}
PAIR = True
LIBRARIES = _clip.LIBRARIES
MICRO_BATCH = 16
DEFAULTS: dict[str, Any] = {**_clip.LARGE, "source": "package:harness/shapes/weights/clip", "revision": None}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The model's files.

    Raises:
        UserError: an unknown parameter, no such folder.
    """
    return model("shapes_clip", params, DEFAULTS).files


def load(params: Mapping[str, Any]) -> _clip.Cosine:
    """The model in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    clip = _clip.load_clip("shapes_clip", params, DEFAULTS)
    return _clip.Cosine("shapes_clip", _clip.image_features(clip), clip.micro_batch)
