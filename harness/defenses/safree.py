"""SAFREE: tokens that lead to a concept are projected off its subspace, for as many steps as the prompt needs.

Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation" (ICLR 2025).
Nothing is trained and no weight changes. Three stages:

- projection (Eq. 2 to 5): a token whose masking moves the prompt away from the concept's phrases is replaced by its
  part off the concept's subspace and within the prompt's own;
- self-validation (Eq. 6): the more the projection changes the prompt, the more of the first steps draw from it;
- latent re-attention (Eq. 7 and 8), during the same steps: the original prompt is denoised beside the changed one,
  and low frequencies of the UNet's skip features that exceed the original's stand back.

The released script, which the published tables were made with, differs from the paper: it passes the phrases as
negative prompt besides, multiplies the projectors in the other order, and its latent re-attention does nothing.
On SDXL and Stable Diffusion 3 it projects at all steps, by the second CLIP encoder's and by T5's tokens.

The phrases are steered away from, never drawn from, so they are data and not put to the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from harness.defenses.base import Params, Pipe, encode, parse
from harness.defenses.denoiser import STATES, DenoiserDefense, repeated
from harness.defenses.skip_attention import SkipAttention
from harness.defenses.subspaces import basis, last_step, projected, triggers
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.defenses.base import Defense

NEEDS = "prompt_tokens"


Scale = Annotated[float, Field(ge=0, le=1)]


class SafreeParams(Params):
    """Parameters that a card of SAFREE may set."""

    phrases: tuple[str, ...] = Field(min_length=1)  # span the concept's subspace
    alpha: float = Field(0.01, ge=0)  # a trigger token lies so much farther; the larger, the fewer tokens change
    mask: int = Field(0, ge=0)  # id of the token that stands in for a masked one
    order: Literal["released", "paper"] = "released"
    negative_prompt: bool = True  # the phrases also take the empty prompt's place in guidance
    self_validation: bool | None = None  # null: with Stable Diffusion 1 and 2, as released; false: all steps
    last_step: int = Field(10, ge=0)  # the latest that self-validation gives; steps count from 0
    midpoint: float = 5.333  # tenths of the cosine distance at which it gives half of that
    sharpness: float = Field(2.5, gt=0)
    re_attention: Literal["off", "paper", "released"] = "off"
    skip_scales: tuple[Scale, Scale] = (0.9, 0.2)  # of re-attention: where features are widest, and second widest


PARAMS = SafreeParams
ZERO = {"alpha": 1e9, "negative_prompt": False}


class Reading(NamedTuple):
    """How a pipeline tokenises and embeds a prompt, and how it sums a text up in one vector of the same space."""

    tokenizer: Any
    summary: Callable[[Tensor], Tensor]  # token ids (n, length) -> (n, width)
    row: int  # of the first token in the denoiser's text
    starts: int  # 1 where a start token comes before the first
    channel: int  # the first of those that come from this encoder
    validated: bool  # whether the released code ends the projection by Eq. 6


class Change(NamedTuple):
    """What replaces a prompt's tokens."""

    rows: Tensor  # (k,) of the denoiser's text
    states: Tensor  # (k, channels)
    last: int | None  # step, from 0, after which the prompt is drawn from as it was; None: never


def reading(pipe: Pipe) -> Reading:
    """How ``pipe`` reads a prompt: by CLIP's tokens, SDXL's second CLIP's, or T5's in Stable Diffusion 3.

    Raises:
        UserError: Stable Diffusion 3 without its T5.
    """
    if hasattr(pipe, "text_encoder_3"):
        if pipe.text_encoder_3 is None:
            raise UserError("SAFREE changes T5's tokens in Stable Diffusion 3; this backbone has no T5")
        t5, clip = pipe.text_encoder_3, int(pipe.tokenizer.model_max_length)
        return Reading(pipe.tokenizer_3, lambda ids: t5(ids)[0][:, 0], clip, 0, 0, validated=False)
    if hasattr(pipe, "text_encoder_2"):
        large, first = pipe.text_encoder_2, int(pipe.text_encoder.config.hidden_size)
        return Reading(pipe.tokenizer_2, lambda ids: large(ids).text_embeds, 1, 1, first, validated=False)
    small = pipe.text_encoder
    return Reading(pipe.tokenizer, lambda ids: small(ids).pooler_output, 1, 1, 0, validated=True)


class Safree(DenoiserDefense):
    """Replaces trigger tokens in what the denoiser reads; its state lives for one micro-batch."""

    def __init__(self, settings: SafreeParams) -> None:
        super().__init__()
        self._settings = settings
        self._text: _Text | None = None
        self._attention: SkipAttention | None = None
        self._changes: list[Change] | None = None
        self._step = 0

    def attach(self, pipe: Pipe) -> None:
        """Span the concept's subspace and wrap the denoiser.

        Raises:
            UserError: a phrase is longer than the text encoder's window, latent re-attention where there is no UNet,
                or no text encoder to read the prompt with.
        """
        if self._settings.re_attention != "off" and getattr(pipe, "unet", None) is None:
            raise UserError("SAFREE's latent re-attention needs a UNet, which this backbone lacks: re_attention: off")
        text = _Text(pipe, self._settings)
        super().attach(pipe)
        self._text = text
        if self._settings.re_attention != "off":
            self._attention = SkipAttention(pipe.unet, self._settings.skip_scales, self._settings.re_attention)

    def detach(self, pipe: Pipe) -> None:
        super().detach(pipe)
        if self._attention is not None:
            self._attention.remove()
        self._text = self._attention = self._changes = None

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self._changes, self._step = None, 0
        negative = {"negative_prompt": [", ".join(self._settings.phrases)] * len(prompts)}
        return super().begin(prompts) | (negative if self._settings.negative_prompt else {})

    def predict(self, inputs: dict[str, Any], guided: bool) -> Tensor:
        import torch

        if self._text is None:
            raise RuntimeError("this defense is not attached")
        states, count = inputs[STATES], len(self.prompts)
        if self._changes is None:
            pairs = zip(self.prompts, states[-count:], strict=True)
            self._changes = [self._text.change(prompt, tokens) for prompt, tokens in pairs]
        step, self._step = self._step, self._step + 1
        changes = [c if c.last is None or step <= c.last else None for c in self._changes]
        changed = inputs | {STATES: self._text.replaced(states, changes)}
        # Whether the originals are denoised beside is the step's affair, not the prompts': what a row becomes can
        # depend on how many rows a batch has, and must not on what the others are.
        if self._attention is None or (self._text.validated and step > self._settings.last_step):
            return self.undefended(changed)
        beside = repeated(changed, len(states), count)
        beside[STATES] = torch.cat([changed[STATES], states[-count:]])
        with self._attention.over([c is not None and len(c.rows) > 0 for c in changes]):
            return self.undefended(beside)[: len(states)]


class _Text:
    """What one pipeline's text encoder says of prompts, against the concept's phrases.

    Raises:
        UserError: a phrase is longer than the text encoder's window.
    """

    def __init__(self, pipe: Pipe, settings: SafreeParams) -> None:
        import torch

        self._settings = settings
        self._reading = reading(pipe)
        self._device = pipe.text_encoder.device
        own = settings.self_validation
        self.validated = self._reading.validated if own is None else own
        for phrase in settings.phrases:
            self._checked(phrase)
        self._concept = basis(torch.cat([self._sums([self._ids(phrase)]) for phrase in settings.phrases]))

    def change(self, prompt: str, tokens: Tensor) -> Change:
        """What replaces the trigger tokens of a prompt.

        Args:
            prompt: as the pipeline was given it.
            tokens: (window, width), the prompt's own as the denoiser reads it.
        """
        import torch

        row, starts, channel = self._reading.row, self._reading.starts, self._reading.channel
        ids = self._ids(prompt, len(tokens) - row + starts)
        states = tokens[:, channel:].detach().to("cpu", torch.float64)
        places = torch.arange(starts, len(ids) - 1)  # of the content: the end token is last
        if not len(places):
            return Change(places, states[:0].to(tokens), None)
        masked = self._sums([[*ids[:i], self._settings.mask, *ids[i + 1 :]] for i in places.tolist()])
        # One call of the encoder for each prompt: what it says must not depend on the other prompts.
        whole = states[row - starts :][: len(ids)]
        changed = projected(whole, basis(masked), self._concept, self._settings.order)
        triggering = places[triggers(masked, self._concept, self._settings.alpha)]
        last = None
        if self.validated:
            own = self._settings
            last = last_step(whole, changed, own.last_step, own.midpoint, own.sharpness)
        return Change(triggering + row - starts, changed[triggering].to(tokens), last)

    def replaced(self, states: Tensor, changes: Sequence[Change | None]) -> Tensor:
        """``states`` (rows, window, width) with each prompt's change made in the last rows, one for each change."""
        made = states.clone()
        for tokens, change in zip(made[-len(changes) :], changes, strict=True):
            if change is not None:
                tokens[change.rows, self._reading.channel :] = change.states
        return made

    def _ids(self, text: str, window: int | None = None) -> list[int]:
        """Token ids with start and end, without padding, cut to the window as the pipeline cuts."""
        cut = {} if window is None else {"truncation": True, "max_length": window}
        ids: list[int] = self._reading.tokenizer(text, **cut).input_ids
        return ids

    def _checked(self, phrase: str) -> None:
        window, needed = int(self._reading.tokenizer.model_max_length), len(self._ids(phrase))
        if needed > window:
            raise UserError(f"a phrase of SAFREE takes {needed} tokens, the text encoder {window}: {phrase[:60]!r}...")

    def _sums(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(n, width) float64: what the encoder sums up texts of equal length in."""
        import torch

        with torch.no_grad():
            summed: Tensor = self._reading.summary(torch.tensor(ids, device=self._device))
        return summed.to("cpu", torch.float64)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """SAFREE with the card's configuration.

    Raises:
        UserError: a bad parameter, or a negative prompt that the text encoder's window does not hold.
    """
    settings = parse(SafreeParams, params)
    if settings.negative_prompt:
        encode(pipe, ", ".join(settings.phrases))  # refuses what the pipeline would cut off
    return Safree(settings)
