"""Talk with a vision-language model about images: greedy, batched, one conversation per image.

One class for every model that transformers loads as ``AutoModelForImageTextToText``: Qwen2-VL-7B of
the ``paper`` profile and the small LLaVA of the shapes world answer through the same code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.models import loading, progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")
# What prepares images: PIL's resampling, whatever else is installed. torchvision's gives other pixels, and so captions.
IMAGE_BACKEND = "pil"


@dataclass(frozen=True)
class Turn:
    """One question. ``prompt`` may quote earlier answers by name, as ``{unsafe_caption}``.

    ``clean`` makes of an answer what later turns quote; the conversation and ``converse`` keep the answer as it was.
    """

    name: str  # of the answer
    prompt: str
    max_new_tokens: int = 64
    clean: Callable[[str], str] | None = None


class Answer(str):
    """What a model said, without white space around it, and whether its length cut it before the model had ended it."""

    cut: bool

    def __new__(cls, text: str, cut: bool = False) -> Answer:
        made = super().__new__(cls, text.strip())
        made.cut = cut
        return made


def fill(prompt: str, answers: Mapping[str, str]) -> str:
    """``prompt`` with each ``{name}`` replaced by that answer; other braces, an answer's own too, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda place: answers.get(place[1], place[0]), prompt)


def load(params: Mapping[str, Any], device: str = "cpu") -> Captioner:
    """Load a captioner.

    Args:
        params: ``source`` (hub id, folder, or ``package:harness/...``); optional ``revision``,
            ``dtype`` ("float32"), ``micro_batch`` (16).
        device: where the model runs.

    Raises:
        UserError: the weights are not on this machine (nothing is downloaded here), damaged, or do not fill the model.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    source, revision = loading.place(str(params["source"])), params.get("revision")
    where: dict[str, Any] = {"revision": revision, "local_files_only": True}
    with loading.loading(f"captioner {params['source']!r}", source):
        processor = AutoProcessor.from_pretrained(source, **where)
        processor.image_processor = AutoImageProcessor.from_pretrained(source, backend=IMAGE_BACKEND, **where)
        dtype = getattr(torch, params.get("dtype", "float32"))
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **where)
    return Captioner(model.to(device).eval(), processor, micro_batch=int(params.get("micro_batch", 16)))


class Captioner:
    """A vision-language model and its processor; answers are the model's most likely ones."""

    def __init__(self, model: Any, processor: Any, *, micro_batch: int) -> None:
        self.model, self.processor, self.micro_batch = model, processor, micro_batch
        self.processor.tokenizer.padding_side = "left"

    def converse(self, images: Sequence[Image | NDArray[np.uint8]], turns: Sequence[Turn]) -> list[list[Answer]]:
        """Ask every turn, in order, about every image; later turns see the earlier answers.

        Partial micro-batches are padded by repeating their last image, so that an answer does not
        depend on how many images were asked about.

        Returns:
            For each image its answers, one a turn.
        """
        answers: list[list[Answer]] = []
        for start in range(0, len(images), self.micro_batch):
            batch = [_image(image) for image in images[start : start + self.micro_batch]]
            count = len(batch)
            batch += [batch[-1]] * (self.micro_batch - count)
            answers += self._converse(batch, turns)[:count]
            progress.rows(count)
        return answers

    def _converse(self, images: list[Image], turns: Sequence[Turn]) -> list[list[Answer]]:
        histories: list[list[dict[str, Any]]] = [[] for _ in images]
        quoted: list[dict[str, str]] = [{} for _ in images]
        said: list[list[Answer]] = [[] for _ in images]
        for turn in turns:
            for history, known in zip(histories, quoted, strict=True):
                content = [] if history else [{"type": "image"}]
                content.append({"type": "text", "text": fill(turn.prompt, known)})
                history.append({"role": "user", "content": content})
            for i, answer in enumerate(self._answer(images, histories, turn)):
                said[i].append(answer)
                quoted[i][turn.name] = turn.clean(answer) if turn.clean else answer
                histories[i].append({"role": "assistant", "content": [{"type": "text", "text": str(answer)}]})
        return said

    def _answer(self, images: list[Image], histories: list[list[dict[str, Any]]], turn: Turn) -> list[Answer]:
        import torch

        texts = [self.processor.apply_chat_template(h, add_generation_prompt=True, tokenize=False) for h in histories]
        begin = self.processor.tokenizer.bos_token
        once = {"add_special_tokens": False} if begin and texts[0].startswith(begin) else {}  # the template's own
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt", **once)
        inputs = inputs.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=turn.max_new_tokens)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [Answer(text, cut) for text, cut in zip(texts, self._cut(new), strict=True)]

    def _cut(self, new: Any) -> list[bool]:
        """Of each answer's token ids (n, length) whether none ends it; never of a model without an end token."""
        ends = self.model.generation_config.eos_token_id
        known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return [bool(known) and not any(token in known for token in ids) for ids in new.tolist()]


def _image(image: Image | NDArray[np.uint8]) -> Image:
    import PIL.Image

    decoded = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return decoded.convert("RGB")
