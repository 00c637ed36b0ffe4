"""MACE: words beside the concept stop hinting at it, low-rank changes blind its own words, and one edit holds both.

Lu et al., "MACE: Mass Concept Erasure in Diffusion Models" (CVPR 2024). Three stages, all on the key and value
matrices of the cross-attentions:

1. closed-form refinement (Eq. 3): the words that a prompt of the concept shares with the same prompt of a harmless
   text take the values that they have there, while the values of general captions stay;
2. for each concept a low-rank change (LoRA) learns to withdraw attention from the concept's words where the concept
   shows (Eq. 4 and 5); where that is, a mask provider says;
3. fusion (Eq. 6): one edit gives every concept's prompts the values that they have under that concept's change.

``released`` weighs the captions in the first stage by the square of the card's scale, as the authors' code does for up
to a thousand concepts (it scales when caches are merged and once more when solving); ``described`` by the scale itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.defenses.base import (
    BuildContext,
    BuildEstimate,
    Defense,
    Pipe,
    UnetDelta,
    checked,
    encode,
    parse,
    projections,
)
from harness.defenses.closed_form import Scales, edit
from harness.defenses.mace_params import MaceParams
from harness.defenses.uce import kept_gram, replace, texts
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.defenses.uce import Pair

ARTEFACT = "unet-delta"
LIBRARIES = ("peft",)


PARAMS = MaceParams
QUICK = {"steps": 2, "images": 2, "batch": 2}


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The ``attn2`` key and value matrices after all three stages.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, captions that leave the edit
            open, a mask provider that is not here, or a loss that diverges.
    """
    from harness.defenses import masks
    from harness.defenses.mace_training import low_rank_change

    settings = parse(MaceParams, params)
    masks.require(settings)
    originals = projections(pipe.unet)
    kept = captions(pipe, settings)
    scale = settings.refine_scale**2 if settings.variant == "released" else settings.refine_scale
    try:
        refined = refine(pipe, originals, settings, kept, scale)
        changes = [low_rank_change(pipe, refined, settings, i, context) for i in range(len(settings.erase))]
        prompts = [concept_states(pipe, settings, text) for text in settings.erase]
        fused = fuse(originals, refined, list(zip(prompts, changes, strict=True)), kept, settings)
    except ValueError as error:
        raise UserError(f"defense mace: {error}; raise `lam`, or give more captions in `preserve`") from None
    return {key: weight.float() for key, weight in fused.items()}


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the edited weights, built or published, into the UNet."""
    parse(MaceParams, params)
    if artefact is None:
        raise ValueError("mace needs its artefact")
    return UnetDelta(artefact)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted: a prediction and a gradient for each latent of each step, and the images of every concept."""
    settings = parse(MaceParams, params)
    steps = settings.steps * len(settings.erase)
    return BuildEstimate(steps, settings.images * len(settings.erase), 3 * steps * settings.batch)


def captions(pipe: Pipe, settings: MaceParams) -> Tensor:
    """Sum of e e^T over the embeddings e of all preserved captions' windows, (width, width) float64.

    Captions that name a concept are left out, and so are those that the guard refuses.
    """
    import torch

    width = pipe.text_encoder.config.hidden_size
    total = torch.zeros(width, width, dtype=torch.float64)
    for source, weight in ((settings.preserve, 1.0), (settings.domain, settings.domain_scale)):
        if source is not None and weight:
            allowed = [text for text in texts(source, settings.erase, ()) if _allowed(text, settings.concept)]
            total += weight * kept_gram(pipe, allowed, settings.concept, whole=True)
    return total


def refine(
    pipe: Pipe, weights: Mapping[str, Tensor], settings: MaceParams, kept: Tensor, scale: float
) -> dict[str, Tensor]:
    """The first stage: ``weights`` edited so that words beside the concept mean what they mean beside the target."""
    return replace(weights, list(_beside(pipe, settings)), kept, Scales(settings.lam, 1.0, scale), "replace")


def fuse(
    originals: Mapping[str, Tensor],
    refined: Mapping[str, Tensor],
    changed: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    kept: Tensor,
    settings: MaceParams,
) -> dict[str, Tensor]:
    """The third stage: one matrix that answers to each concept's prompts as its own low-rank change would.

    Args:
        originals: the undefended matrices by key, whose answers to the captions stay.
        refined: after the first stage.
        changed: for each concept the embeddings of its prompts (n, width), and what its change adds, by key.
        kept: as ``captions`` gives them.
        settings: for the scales.

    Returns:
        float64 matrices by key.
    """
    import torch

    keys = torch.cat([states for states, _ in changed])
    scales = Scales(settings.lam, 1.0, settings.fuse_scale)
    fused: dict[str, Tensor] = {}
    for key, weight in refined.items():
        values = torch.cat([states @ (weight + change[key].double()).T for states, change in changed])
        fused[key] = edit(weight, keys, values, kept, scales, originals[key])
    return fused


def concept_states(pipe: Pipe, settings: MaceParams, text: str) -> Tensor:
    """The embeddings of a concept's prompts, all of their windows: (templates x window, width) float64 on the CPU."""
    import torch

    prompts = [checked(template.replace("{}", text), settings.concept) for template in settings.templates]
    return torch.cat([encode(pipe, prompt).states for prompt in prompts]).cpu().double()


def shared_positions(old: Sequence[int], new: Sequence[int], window: int) -> tuple[list[int], list[int]]:
    """Where two tokenised prompts that differ in one stretch hold the same token.

    Args:
        old: token ids of one prompt, from the start token to the end token.
        new: of the other.
        window: positions of the text encoder; padding behind the shorter prompt's end has its mate behind the other's.

    Returns:
        the positions in ``old`` and, of equal number, those in ``new``.
    """
    begin = 0
    while begin < min(len(old), len(new)) and old[begin] == new[begin]:
        begin += 1
    tail = 0
    while tail < min(len(old), len(new)) - begin and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    rest = tail + window - max(len(old), len(new))
    before = list(range(begin))
    first, second = len(old) - tail, len(new) - tail
    return before + list(range(first, first + rest)), before + list(range(second, second + rest))


def _beside(pipe: Pipe, settings: MaceParams) -> Iterator[Pair]:
    """For each prompt of a concept the embeddings of what it shares with the target's prompt, in both."""
    window = int(pipe.tokenizer.model_max_length)
    for text in settings.erase:
        for template in settings.templates:
            old = checked(template.replace("{}", text), settings.concept)
            new = checked(template.replace("{}", settings.target), settings.concept)
            here, there = shared_positions(pipe.tokenizer(old).input_ids, pipe.tokenizer(new).input_ids, window)
            yield encode(pipe, old).states[here].cpu().double(), encode(pipe, new).states[there].cpu().double()


def _allowed(text: str, concept: str) -> bool:
    try:
        checked(text, concept)
    except UserError:
        return False
    return True
