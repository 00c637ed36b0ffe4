"""Cosine of two captions' features by the shapes world's own captioner and CLIP, as ``caption_clip``.

Under its own name, since its numbers are not those of Qwen2-VL and ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _captions

COLUMNS: dict[str, pa.DataType] = _captions.columns("shapes_caption_clip")
PAIR = True
LIBRARIES = _captions.LIBRARIES
MICRO_BATCH = _captions.MICRO_BATCH
HUB = _captions.HUB
DEFAULTS: dict[str, Any] = {
    **_captions.DEFAULTS,
    "source": "package:harness/shapes/weights/clip",
    "revision": None,
    "captioner": "package:harness/shapes/weights/captioner",
    "captioner_revision": None,
    "captioner_dtype": "float32",
}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """Both models' files where they lie in folders.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return _captions.files("shapes_caption_clip", params, DEFAULTS)


def load(params: Mapping[str, Any]) -> _captions.Captions:
    """Both models in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    return _captions.load("shapes_caption_clip", params, DEFAULTS)
