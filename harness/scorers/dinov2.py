"""Cosine of the DINOv2 features of an image and its reference (ReSafe, Table 3: "Image Similarity (DINOv2)").

The feature is the class token after the last layer norm (Oquab et al. 2023). The paper names no size; ViT-B/14 is the
default, the usual one for this measure. Images are made ready as the weights' own preprocessor says (256 pixels,
then the middle 224).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.errors import UserError, nearest
from harness.models import loading
from harness.scorers import options
from harness.scorers._clip import Array, Cosine
from harness.scorers._sources import micro_batch, model
from harness.scorers.batching import Image

COLUMNS: dict[str, pa.DataType] = {"dinov2_cosine": pa.float32()}
PAIR = True
LIBRARIES = ("torch", "transformers", "pillow", "numpy")
MICRO_BATCH = 16
DTYPES = ("float32", "bfloat16", "float16")
DEFAULTS: dict[str, Any] = {
    "source": "facebook/dinov2-base",
    "revision": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "dtype": "float32",
    "micro_batch": MICRO_BATCH,
    "device": "cpu",
}


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The model's files where it lies in a folder.

    Raises:
        UserError: an unknown parameter, no such folder, a hub id without a revision.
    """
    return model("dinov2", params, DEFAULTS).files


def load(params: Mapping[str, Any]) -> Cosine:
    """The model in memory.

    Raises:
        UserError: an unknown parameter or dtype, weights that are not on this machine or another model's.
    """
    chosen = options("dinov2", params, DEFAULTS)
    weights = model("dinov2", params, DEFAULTS)
    size = micro_batch("dinov2", chosen["micro_batch"])
    dtype = chosen["dtype"]
    if dtype not in DTYPES:
        raise UserError(f"scorer 'dinov2': unknown dtype {dtype!r}{nearest(str(dtype), DTYPES)} ({', '.join(DTYPES)})")
    return Cosine("dinov2", _features(weights.source, weights.revision, dtype, chosen["device"]), size)


def _features(source: str, revision: str | None, dtype: str, device: str) -> Callable[[list[Image]], Array]:
    """The class token of images, (n, d), as a function of them."""
    import PIL.Image
    import torch
    from transformers import AutoConfig, AutoImageProcessor, Dinov2Model

    where: dict[str, Any] = {"revision": revision, "local_files_only": True}
    get = f"fetch them on a machine that may, with `hf download {source}`, or give a folder that holds them as source"
    with loading.loading("scorer 'dinov2'", source, get):
        kind = AutoConfig.from_pretrained(source, **where).model_type
        # PIL's resampling with or without torchvision, so that features do not depend on what is installed.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **where)
        if kind != "dinov2":
            raise UserError(f"scorer 'dinov2': {source!r} is a model of type {kind!r}")
        network = Dinov2Model.from_pretrained(source, dtype=getattr(torch, dtype), **where)
    network = network.to(device).eval().requires_grad_(False)

    def features(batch: list[Image]) -> Array:
        images = [PIL.Image.fromarray(image) for image in batch]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(device, network.dtype)
        with torch.inference_mode():
            tokens: Array = network(pixel_values=pixels).last_hidden_state[:, 0].double().cpu().numpy()
        return np.ascontiguousarray(tokens)

    return features
