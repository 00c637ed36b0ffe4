"""A negative prompt: the text that guidance leads away from takes the empty prompt's place.

The phrases are steered away from, never drawn from, so they are data and not put to the guard
(published lists name what must not appear).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.defenses.base import Defense, Params, Pipe, encode, no_guidance, parse

if TYPE_CHECKING:
    from torch import Tensor

NEEDS = "negative_prompt"


class NegativeParams(Params):
    """Parameters that a card of the negative prompt may set."""

    phrases: tuple[str, ...] = Field(min_length=1)  # joined by ", "


PARAMS = NegativeParams
ZERO = {"phrases": [""]}


class NegativePrompt(Defense):
    """Passes one negative prompt for every image. Without guidance (scale <= 1) it has no effect."""

    def __init__(self, text: str) -> None:
        self.text = text

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {"negative_prompt": [self.text] * len(prompts)}

    def note(self, guidance: float) -> str | None:
        return no_guidance("negative_prompt", guidance)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """The negative prompt of ``params``.

    Raises:
        UserError: a bad parameter, or phrases that do not fit the text encoder's window.
    """
    text = ", ".join(parse(NegativeParams, params).phrases)
    encode(pipe, text)  # refuses what the pipeline would cut off
    return NegativePrompt(text)
