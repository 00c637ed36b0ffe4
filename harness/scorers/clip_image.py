"""Cosine of the CLIP image features of an image and its reference (ReSafe, Table 3: "Image Similarity (CLIP)").

The paper does not say which CLIP; ViT-L/14 is the default, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _clip
from harness.scorers._sources import model

COLUMNS: dict[str, pa.DataType] = {"clip_image_cosine": pa.float32()}
PAIR = True
LIBRARIES = _clip.LIBRARIES
MICRO_BATCH = _clip.MICRO_BATCH
DEFAULTS: dict[str, Any] = {**_clip.LARGE}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The model's files where it lies in a folder.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return model("clip_image", params, DEFAULTS).files


def load(params: Mapping[str, Any]) -> _clip.Cosine:
    """The model in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    clip = _clip.load_clip("clip_image", params, DEFAULTS)
    return _clip.Cosine("clip_image", _clip.image_features(clip), clip.micro_batch)
