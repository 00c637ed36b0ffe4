"""Training images for a defense that learns from some: the undefended backbone draws them, as it draws a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.defenses.base import BuildStep, Defense, Pipe, checked
from harness.models import text_to_image
from harness.pipeline.stages.memory import fitting

if TYPE_CHECKING:
    from PIL.Image import Image

    from harness.cards.backbone import BackboneCard

Draw = Callable[[Sequence[str], Sequence[int]], "list[Image]"]


def drawer(pipe: Pipe, card: BackboneCard, concept: str, tell: Callable[[BuildStep], None]) -> Draw:
    """What draws one image for each text and seed, at the card's size and guidance.

    Args:
        pipe: the undefended backbone.
        card: how it is sampled.
        concept: what the defense removes, for the guard, which reads every text before anything is drawn.
        tell: called after every micro-batch.

    Returns:
        a function that raises UserError for a text that the guard refuses, and TransientError without memory.
    """

    def draw(texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        from PIL import Image

        canvas = text_to_image.Canvas(card.guidance, card.width, card.height)
        pairs = zip(texts, seeds, strict=True)
        requests = [text_to_image.Request(checked(text, concept), seed, concept) for text, seed in pairs]
        images: list[Image.Image] = []
        size = card.micro_batch
        for start in range(0, len(requests), size):
            with fitting(size, "micro_batch", card.path.name):
                arrays = text_to_image.sample(
                    pipe, Defense(), requests[start : start + size], canvas, card.steps, size,
                    text_to_image.options(card),
                )  # fmt: skip
            images += [Image.fromarray(array) for array in arrays]
            tell(BuildStep("draw", len(images), len(requests)))
        return images

    return draw
