"""Cosine of the CLIP features of two captions, an image's and its reference's: ReSafe's text similarity (Table 3).

The captioner (Qwen2-VL-7B) describes both images in ReSafe's words; CLIP ViT-L/14 reads both captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _captions

COLUMNS: dict[str, pa.DataType] = _captions.columns("caption_clip")
PAIR = True
LIBRARIES = _captions.LIBRARIES
MICRO_BATCH = _captions.MICRO_BATCH
HUB = _captions.HUB
DEFAULTS: dict[str, Any] = _captions.DEFAULTS


def weights(params: Mapping[str, Any]) -> list[Path]:
    """Both models' files where they lie in folders.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return _captions.files("caption_clip", params, DEFAULTS)


def load(params: Mapping[str, Any]) -> _captions.Captions:
    """Both models in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    return _captions.load("caption_clip", params, DEFAULTS)
