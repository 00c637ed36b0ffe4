"""What every defense is, and what their modules share: parameters, UNet deltas, text embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.cards.faults import value_fault
from harness.errors import RowError, UserError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Pipe = Any  # a diffusers StableDiffusionPipeline, whose components type checkers do not see


class Defense:
    """A change to a pipeline that can be undone. This one changes nothing."""

    def attach(self, pipe: Pipe) -> None:
        """Apply the defense to ``pipe``, in place."""

    def detach(self, pipe: Pipe) -> None:
        """Restore ``pipe`` to what it was before ``attach``, bit for bit; without an ``attach``, do nothing."""

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Reset per-image state; called before each call of the pipeline.

        Args:
            prompts: of the images in the coming micro-batch.

        Returns:
            Further arguments for the pipeline's call.
        """
        return {}

    def note(self, guidance: float) -> str | None:
        """A code to note in an image's row about what the defense did to it, such as ``no-guidance``; None for nothing.

        Args:
            guidance: scale of classifier-free guidance that the image is drawn at.
        """
        return None


def no_guidance(mechanism: str, guidance: float) -> str | None:
    """The note for an image drawn without guidance (scale 1 or less) by a mechanism that only changes guidance."""
    return f"{mechanism}:no-guidance" if guidance <= 1 else None


class UnetDelta(Defense):
    """Replaces tensors of the UNet.

    Args:
        tensors: diffusers UNet key to new tensor, of the shape that the UNet has there.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self._originals: dict[str, Tensor] = {}

    def attach(self, pipe: Pipe) -> None:
        """Copy the tensors in, in the UNet's dtype.

        Raises:
            UserError: a key that the UNet lacks, or another shape; nothing is changed then.
        """
        import torch

        from harness.defenses.artefact import check

        if self._originals:
            raise RuntimeError("this defense is attached already")
        check(self.tensors, pipe.unet, "the defense")
        state = pipe.unet.state_dict()  # shares memory with the parameters
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                self._originals[key] = state[key].clone()
                state[key].copy_(tensor)

    def detach(self, pipe: Pipe) -> None:
        import torch

        state = pipe.unet.state_dict()
        with torch.no_grad():
            for key, tensor in self._originals.items():
                state[key].copy_(tensor)
        self._originals = {}


class BuildStep(NamedTuple):
    """How far a build has come."""

    phase: str  # what is being done, such as "train" or "draw"
    step: int  # steps of the phase that are done
    steps: int  # of the phase
    loss: float | None = None  # of the last step, where the phase minimises one


def _unheard(step: BuildStep) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a build is given beside the pipeline and its parameters.

    Attributes:
        folder: private to this build, for checkpoints and intermediate tensors, kept until the artefact is written;
            None: nothing is kept, so that a build that is stopped starts anew.
        report: called with each step, or at least once a second.
        draw: draws training images: one by the undefended backbone for each text and seed. It asks the guard about the
            texts, so a mechanism never calls a pipeline itself. None: a mechanism that needs images is refused.
    """

    folder: Path | None = None
    report: Callable[[BuildStep], None] = _unheard
    draw: Callable[[Sequence[str], Sequence[int]], list[Image]] | None = None


class BuildEstimate(NamedTuple):
    """Counts from which a plan estimates how long a build takes; all zero for a closed form, which takes seconds."""

    steps: int = 0  # of optimisation
    images: int = 0  # to be drawn
    denoiser_calls: int = 0  # on one latent each, beyond those that draw images; a backward pass counts as two


class Params(BaseModel):
    """Parameters that every mechanism takes; subclasses add their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    concept: str = "nudity"  # of the run, for the guard; the strictest where it is not given


class BuiltParams(Params):
    """Parameters of a mechanism that is built, or takes published weights in place of building."""

    weights: str | None = None  # a path, or "hub:OWNER/REPO@COMMIT/PATH"


AnyParams = TypeVar("AnyParams", bound=Params)


INCOMPLETE = "incomplete"  # type of a pydantic error of our own: what is there is well, and something is missing


class IncompleteError(UserError):
    """Required parameters are missing; those that are there are fine."""


def parse(model: type[AnyParams], params: Mapping[str, Any]) -> AnyParams:
    """``params`` validated as ``model``, without conversion between types (``"0.5"`` is no number).

    Raises:
        UserError: one line with mechanism, parameter and what is allowed.
    """
    mechanism = model.__module__.rpartition(".")[2].removesuffix("_params")
    try:
        text = json.dumps(dict(params))
    except TypeError as error:  # YAML knows dates, which JSON does not
        raise UserError(f"defense {mechanism}: parameters are numbers, texts, lists and mappings: {error}") from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] == "missing")  # last of all
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            near, allowed = nearest(key, model.model_fields), ", ".join(model.model_fields)
            raise UserError(f"defense {mechanism}: unknown parameter {key!r}{near} (it takes: {allowed})") from None
        if first["type"] == INCOMPLETE:
            raise IncompleteError(f"defense {mechanism}: {first['msg']}") from None
        kind = IncompleteError if first["type"] == "missing" else UserError
        where = f"parameter {key!r}: " if key else ""  # a rule about several has no key
        raise kind(f"defense {mechanism}: {where}{value_fault(first)}") from None


def checked(text: str, concept: str) -> str:
    """``text`` itself, after asking the guard whether a defense may be built from it.

    Raises:
        UserError: the guard refuses it.
    """
    from harness.data.guard import guard

    try:
        guard(text, concept)
    except RowError as error:
        raise UserError(f"a defense may not be built from the text {text!r} ({error.code})") from None
    return text


class Encoded(NamedTuple):
    """One text as the denoiser sees it."""

    states: Tensor  # (window, width): last hidden states, in the text encoder's dtype, on its device
    last: int  # position of the last content token; 0, the start token's, for a text without content


def encode(pipe: Pipe, text: str) -> Encoded:
    """Embed ``text`` as the pipeline itself does, whatever the window and width of its encoder.

    Raises:
        UserError: the text is longer than the window, so that its end would be lost silently.
    """
    import torch

    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    window = int(tokenizer.model_max_length)
    needed = len(tokenizer(text).input_ids)
    if needed > window:
        raise UserError(f"a defense's text takes {needed} tokens, the text encoder {window}: {text[:60]!r}...")
    tokens = tokenizer(text, padding="max_length", max_length=window, return_tensors="pt")
    device = next(encoder.parameters()).device
    masked = getattr(encoder.config, "use_attention_mask", None)
    mask = tokens.attention_mask.to(device) if masked else None
    with torch.no_grad():
        states = encoder(tokens.input_ids.to(device), attention_mask=mask)[0][0]
    # The mask covers start, content and end; padding may share the end's id, so ids would not tell.
    return Encoded(states, max(int(tokens.attention_mask.sum()) - 2, 0))


def projections(unet: Any) -> dict[str, Tensor]:
    """The matrices of every cross-attention that map text embeddings to keys and values.

    Returns:
        UNet key (``...attn2.to_k.weight``) to float64 copy (rows, text width) on the CPU, in UNet order.
    """
    import torch

    ends = (".attn2.to_k.weight", ".attn2.to_v.weight")
    matrices = {
        key: tensor.detach().to("cpu", torch.float64, copy=True)
        for key, tensor in unet.named_parameters()
        if key.endswith(ends)
    }
    if not matrices:
        raise UserError("this backbone's UNet has no cross-attention (`attn2`) to edit")
    return matrices
