"""UCE: every cross-attention answers to the erased words as it would to a harmless text.

Gandikota et al., "Unified Concept Editing in Diffusion Models" (WACV 2024). Two published algorithms
share the name:

- ``uce_2023``, the paper's code: a concept's keys are its embeddings from its last content token to the
  end of the window, their values the target's from its own last content token, cut to equal length; the
  empty text is preserved with its whole window.
- ``uce_2025``, the rewritten code: one key and one value a concept, at the last content token; nothing is
  preserved by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.defenses.base import (
    BuildContext,
    BuiltParams,
    Defense,
    Pipe,
    UnetDelta,
    checked,
    encode,
    parse,
    projections,
)
from harness.defenses.closed_form import Scales, edit, gram, remove_direction
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Pair = tuple[Tensor, Tensor]  # keys and the embeddings whose values they take, (n, width) float64 each


Text = Annotated[str, Field(pattern=r"\S")]  # the empty text's keys are every prompt's: to erase it is to erase all

Template = Annotated[str, Field(pattern=r"\{\}")]


class UceParams(BuiltParams):
    """Parameters that a card of UCE may set."""

    variant: Literal["uce_2023", "uce_2025"] = "uce_2023"
    erase: tuple[Text, ...] = Field(min_length=1)
    templates: tuple[Template, ...] = Field(("{}",), min_length=1)  # each erased text is also erased in these phrasings
    target: str = " "  # what the erased texts turn into
    preserve: tuple[str, ...] | str | None = None  # texts, or a file with one a line; null: the variant's own
    technique: Literal["replace", "tensor"] = "replace"  # tensor: only the erased direction is taken away
    lam: float = Field(0.5, gt=0)
    erase_scale: float = Field(1.0, ge=0)
    preserve_scale: float | None = Field(None, ge=0)  # null: max(0.1, 1/texts) in 2023, 1 in 2025


PARAMS = UceParams
ZERO = {"erase_scale": 0.0}
ARTEFACT = "unet-delta"


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The edited ``attn2`` key and value matrices.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold.
    """
    settings = parse(UceParams, params)
    return {key: w.float() for key, w in edited(pipe, projections(pipe.unet), settings).items()}


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the edited weights into the UNet."""
    parse(UceParams, params)
    if artefact is None:
        raise ValueError("uce needs its artefact")
    return UnetDelta(artefact)


def edited(pipe: Pipe, weights: Mapping[str, Tensor], settings: UceParams) -> dict[str, Tensor]:
    """``weights`` after the edit; float64, same keys and shapes."""
    pairs = list(_pairs(pipe, settings))
    first = settings.variant == "uce_2023"
    kept = texts(settings.preserve, settings.erase, default=("",) if first else ())
    scale = settings.preserve_scale
    if scale is None:
        scale = max(0.1, round(1 / max(1, len(kept)), 3)) if first else 1.0
    preserved = kept_gram(pipe, kept, settings.concept, whole=first)
    return replace(weights, pairs, preserved, Scales(settings.lam, settings.erase_scale, scale), settings.technique)


def replace(
    weights: Mapping[str, Tensor], pairs: Sequence[Pair], preserved: Tensor, scales: Scales, technique: str
) -> dict[str, Tensor]:
    """Each of ``weights`` (rows, width) edited so that the first embeddings of ``pairs`` take the second's values."""
    import torch

    values = torch.cat([_values(weights, old, new, technique) for old, new in pairs])
    stacked = edit(torch.cat(list(weights.values())), torch.cat([old for old, _ in pairs]), values, preserved, scales)
    return dict(zip(weights, torch.split(stacked, [len(w) for w in weights.values()]), strict=True))


def _values(weights: Mapping[str, Tensor], old: Tensor, new: Tensor, technique: str) -> Tensor:
    """What keys ``old`` shall become, (n, rows of all weights): the values of ``new`` (n, width)."""
    import torch

    values = [new @ w.T for w in weights.values()]
    if technique == "tensor":  # less what they share with the erased values, weight by weight
        values = [remove_direction(v, old @ w.T) for v, w in zip(values, weights.values(), strict=True)]
    return torch.cat(values, dim=1)


def texts(preserve: tuple[str, ...] | str | None, erased: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
    """The texts whose values the edit preserves; a text that contains an erased one cannot be and is left out.

    Args:
        preserve: texts, or a file with one a line (added to ``default``), or None for ``default``.
        erased: as whole words, in any case.
        default: used where nothing else is given.

    Raises:
        UserError: a file that cannot be read or holds nothing to preserve.
    """
    if preserve is None:
        return default
    gone = re.compile("|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in erased), re.IGNORECASE)
    if isinstance(preserve, tuple):
        return tuple(text for text in preserve if not gone.search(text))
    path = Path(preserve).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"texts to preserve cannot be read from {path}: {error}") from None
    kept = tuple(line for line in lines if line and not gone.search(line))
    if not kept:
        raise UserError(f"no texts to preserve in {path} (one a line)")
    return (*default, *kept)


def kept_gram(pipe: Pipe, kept: Sequence[str], concept: str, whole: bool) -> Tensor:
    """Sum of r r^T, (width, width) float64, over the embeddings of ``kept``.

    Args:
        pipe: for its text encoder.
        kept: texts.
        concept: of the run, for the guard.
        whole: the texts' whole windows, or only their last content tokens.
    """
    import torch

    width = pipe.text_encoder.config.hidden_size
    total = torch.zeros(width, width, dtype=torch.float64)
    for text in kept:
        states, last = encode(pipe, checked(text, concept))
        total += gram((states if whole else states[last : last + 1]).cpu())
    return total


def _pairs(pipe: Pipe, settings: UceParams) -> Iterator[Pair]:
    """For each erased text its keys and the embeddings that take their place."""
    target = encode(pipe, checked(settings.target, settings.concept))
    for text in (t.replace("{}", e) for e in settings.erase for t in settings.templates):
        erased = encode(pipe, checked(text, settings.concept))
        # Up to the end of the window, whichever begins later.
        rows = 1 if settings.variant == "uce_2025" else len(erased.states) - max(erased.last, target.last)
        old = erased.states[erased.last : erased.last + rows]
        new = target.states[target.last : target.last + rows]
        yield old.cpu().double(), new.cpu().double()
