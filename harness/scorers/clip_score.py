"""CLIP score of an image and its prompt (Hessel et al. 2021, EMNLP, without their factor 2.5).

``clip_score_cosine`` is the cosine of both features; ``clip_score_percent`` is 100 max(cosine, 0), the image's own
score (torchmetrics, too, gives 100 cosine, but cuts the mean of a set at 0 instead of each image's; on real sets no
cosine is negative). ``clip_score_cut`` says that the prompt is longer than CLIP's window and was cut. ViT-L/14 by
default, as DMUA; papers differ in the network (MACE: ViT-B/32), so only figures of one network compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.scorers import _clip
from harness.scorers._sources import model

COLUMNS: dict[str, pa.DataType] = _clip.score_columns("clip_score")
PAIR = False
TEXT = True
LIBRARIES = _clip.LIBRARIES
MICRO_BATCH = _clip.MICRO_BATCH
DEFAULTS: dict[str, Any] = {**_clip.LARGE}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The model's files where it lies in a folder.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return model("clip_score", params, DEFAULTS).files


def load(params: Mapping[str, Any]) -> _clip.Score:
    """The model in memory.

    Raises:
        UserError: an unknown parameter, weights that are not on this machine.
    """
    return _clip.Score("clip_score", _clip.load_clip("clip_score", params, DEFAULTS))
