"""CLIP, both towers: features of images and of texts in the space that they share.

One class for every model that transformers loads as ``CLIPModel``: ViT-L/14 of the ``paper`` profile and the small
one of the shapes world. ReSafe's embedding and prompt optimisation and the CLIP scorers read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.data.hub import cached_file
from harness.errors import UserError, nearest
from harness.models import loading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")
MICRO_BATCH = 32
DTYPES = ("float64", "float32", "bfloat16", "float16")
_WINDOW = 77  # of a configuration that says none
_PARAMS = ("source", "revision", "dtype", "micro_batch")

_Item = TypeVar("_Item")


def load(params: Mapping[str, Any], device: str = "cpu") -> Clip:
    """Load a CLIP model.

    Args:
        params: ``source`` (hub id, folder, or ``package:harness/...``); optional ``revision``, ``dtype``
            ("float32"), ``micro_batch`` (32).
        device: where the model runs.

    Raises:
        UserError: an unknown parameter, or the weights are not on this machine (nothing is downloaded here), damaged,
            or do not fill the model.
    """
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    for name in params:
        if name not in _PARAMS:
            raise UserError(f"clip: no parameter {name!r}; there are {', '.join(_PARAMS)}{nearest(name, _PARAMS)}")
    given = str(params["source"])
    dtype = str(params.get("dtype") or "float32")
    if dtype not in DTYPES:
        raise UserError(f"clip {given!r}: dtype {dtype!r} is none of {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
    source = loading.place(given)
    where: dict[str, Any] = {"revision": params.get("revision"), "local_files_only": True}
    get = f"fetch them on a machine that may, with `hf download {given}`, or give a folder that holds them as source"
    with loading.loading(f"clip {given!r}", source, get):
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        # PIL's resampling with or without torchvision, so that features do not depend on what is installed.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **where)
        model = CLIPModel.from_pretrained(source, dtype=getattr(torch, dtype), **where)
    micro_batch = int(params.get("micro_batch") or MICRO_BATCH)
    if micro_batch < 1:
        raise UserError(f"clip {given!r}: micro_batch is {micro_batch}, not 1 or more")
    return Clip(model.to(device).eval().requires_grad_(False), tokenizer, processor, micro_batch=micro_batch)


def room(source: str, revision: str | None = None) -> int | None:
    """How many tokens a text may have between begin and end, by config.json; None if that is not on this machine.

    Args:
        source: a folder, ``package:harness/...``, or a hub id.
        revision: of the hub's repository; None: what this machine holds.
    """
    path = Path(loading.place(source)) / "config.json"
    if not path.is_file():
        cached = cached_file(source, "config.json", revision) if source.count("/") == 1 else None
        if cached is None:
            return None
        path = cached
    text_config = json.loads(path.read_text(encoding="utf-8")).get("text_config") or {}
    return int(text_config.get("max_position_embeddings", _WINDOW)) - 2


class Clip:
    """A CLIP model, its tokenizer and its image processor.

    Attributes:
        window: how many tokens a text may have, begin and end tokens included (77 on ViT-L/14).
        width: d, the length of a feature (768 on ViT-L/14).
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, micro_batch: int = MICRO_BATCH) -> None:
        self.model, self.tokenizer, self.processor, self.micro_batch = model, tokenizer, processor, micro_batch
        self.window = int(model.config.text_config.max_position_embeddings)
        self.width = int(model.config.projection_dim)

    @property
    def device(self) -> Any:
        return self.model.device

    def images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Projected features, not normalised, of images (H, W, 3) of any sizes: (n, d) float32."""
        import torch

        def features(batch: list[Tensor]) -> Tensor:
            pixels = torch.stack(batch).to(self.model.device, self.model.dtype)
            return _projected(self.model.get_image_features(pixel_values=pixels))

        return self._batched([self._pixels(image) for image in images], features)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Projected features, not normalised, of texts, and of each text whether it was cut to the window.

        Returns:
            (n, d) float32, and n times whether the text had more tokens than the window holds; what is beyond was
            left out, the end token kept.
        """
        import torch

        def features(batch: list[list[int]]) -> Tensor:
            ids = torch.tensor(batch, device=self.model.device)
            return _projected(self.model.get_text_features(input_ids=ids))

        whole = self.tokenize(texts)
        return self._batched([self._fit(ids) for ids in whole], features), [len(ids) > self.window for ids in whole]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids, begin and end tokens included, uncut and unpadded."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return ids

    def _fit(self, ids: list[int]) -> list[int]:
        """Cut to the window, the end token kept, or padded to it: a text's feature never depends on the longest."""
        if len(ids) > self.window:
            return [*ids[: self.window - 1], ids[-1]]
        # Causal attention and pooling at the (first) end token make what follows it irrelevant.
        return ids + [self.tokenizer.pad_token_id] * (self.window - len(ids))

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        import PIL.Image

        pixels: Tensor = self.processor(images=PIL.Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        return pixels

    def _batched(self, items: list[_Item], features: Callable[[list[_Item]], Tensor]) -> Tensor:
        import torch

        with torch.inference_mode():
            batches = [features(batch)[:count].float() for batch, count in full_batches(items, self.micro_batch)]
        # A clone made outside inference mode may enter autograd.
        return torch.cat(batches).clone() if batches else torch.empty(0, self.width, device=self.model.device)


def full_batches(items: Sequence[_Item], size: int) -> Iterator[tuple[list[_Item], int]]:
    """``items`` in batches of exactly ``size``, the last one filled by repeating its last item, and how many count."""
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)


def _projected(output: Any) -> Tensor:
    """The projected feature: transformers 5 returns it as an output's pooler_output, transformers 4 as it is."""
    feature: Tensor = getattr(output, "pooler_output", output)
    return feature
