"""How Receler's erasers learn: latents, the concept's places, adversarial vectors, and the loss of one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from harness.defenses.base import Pipe, encode
from harness.defenses.masks import concept_mask
from harness.defenses.training import losses
from harness.defenses.training.attention import recorded_attention
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.defenses.receler_params import RecelerParams

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names for Adam's state


class Trainer:
    """Computes the loss of each step, and keeps what lasts from step to step beside the erasers.

    Attributes:
        added: what the erasers added in the student's last call, by place; filled by `receler.erasing`.
        state: each erased text's adversarial vectors and their optimiser's state, so that checkpoints hold them;
            the erasers' optimiser leaves them alone, since they ask for no gradients.
    """

    def __init__(self, pipe: Pipe, student: nn.Module, erasers: Mapping[str, nn.Parameter], settings: RecelerParams):
        self._pipe, self._student, self._settings = pipe, student, settings
        self._process = losses.NoiseProcess(pipe)
        self._walker = losses.sampler(pipe, DDIMScheduler, settings.sampler_steps)
        self._texts = losses.text_states(pipe, settings.erase, settings.concept)
        self._empty = losses.text_states(pipe, [""], settings.concept)
        self._lengths = [encode(pipe, text).last for text in settings.erase]
        self.added: dict[str, Tensor] = {}
        self.state = self._adversaries() if settings.variant == "described" else {}

    def loss(self, step: int, generator: Generator) -> Tensor:
        """The erasers' loss, drawn from the step's generator; first the adversarial vectors are moved."""
        settings = self._settings
        word = int(torch.randint(len(self._texts), (1,), generator=generator))
        stop = int(torch.randint(settings.sampler_steps, (1,), generator=generator))
        noise = self._process.noise((settings.batch, *losses.latent_shape(self._pipe)), generator)
        text = self._texts[word : word + 1]
        partial = losses.partly_denoised(
            self._student, self._walker, noise, stop, (text, self._empty), settings.guidance
        )
        level = losses.level(self._process.timesteps, settings.sampler_steps, stop, generator)
        timesteps = torch.full((settings.batch,), level, device=self._process.device)
        with torch.no_grad():
            empty = losses.predict(self._pipe.unet, partial.latents, timesteps, self._empty)
            with recorded_attention(self._pipe.unet) as maps:
                drawn = losses.predict(self._pipe.unet, partial.latents, timesteps, text)
        mask = concept_mask(maps, range(1, 1 + self._lengths[word]), settings.mask_side, settings.mask_threshold)
        predicted = self._attacked(word, partial.latents, timesteps, drawn)
        target = empty - settings.eta * (drawn - empty)
        return mse_loss(predicted, target) + settings.locality * outside(self.added, mask)

    def _attacked(self, word: int, latents: Tensor, timesteps: Tensor, drawn: Tensor) -> Tensor:
        """The student's prediction under the text with its adversarial vectors, moved towards ``drawn`` first.

        As in the released loop, the erasers learn from the last call in which the vectors are moved.
        """
        text = self._texts[word : word + 1]
        if not self.state:
            return losses.predict(self._student, latents, timesteps, text)
        vectors = self.state[f"adversary.{word}"]
        optimiser = self._optimiser(word)
        for _ in range(self._settings.adversarial_steps):
            leaf = vectors.detach().clone().requires_grad_()
            predicted = losses.predict(self._student, latents, timesteps, self._with(text, leaf, word))
            attack = mse_loss(predicted, drawn)
            (vectors.grad,) = torch.autograd.grad(attack, [leaf], retain_graph=True)
            optimiser.step()
            vectors.grad = None
        return predicted

    def _with(self, text: Tensor, vectors: Tensor, word: int) -> Tensor:
        """``text`` with ``vectors`` in the place of the states after its content."""
        start = 1 + self._lengths[word]
        return torch.cat([text[:, :start], vectors, text[:, start + vectors.shape[1] :]], dim=1)

    def _adversaries(self) -> dict[str, nn.Parameter]:
        """Fresh vectors, uniform in 0..1, and zero moments.

        Raises:
            UserError: the text encoder's window has no room for them behind a text.
        """
        settings, (window, width) = self._settings, self._empty.shape[1:]
        generator = Generator("cpu").manual_seed(settings.seed)
        state: dict[str, nn.Parameter] = {}
        for word, length in enumerate(self._lengths):
            if 1 + length + settings.adversarial_tokens > window:
                raise UserError(
                    f"defense receler: {settings.adversarial_tokens} adversarial tokens do not fit behind "
                    f"{settings.erase[word]!r} in the text encoder's window of {window}"
                )
            vectors = torch.rand(1, settings.adversarial_tokens, width, generator=generator)
            values = (vectors, torch.zeros(()), torch.zeros_like(vectors), torch.zeros_like(vectors))
            for name, value in zip(("", *_MOMENTS), values, strict=True):
                placed = value if name == "step" else value.to(self._process.device)
                key = f"adversary.{word}.{name}".rstrip(".")
                state[key] = nn.Parameter(placed, requires_grad=False)
        return state

    def _optimiser(self, word: int) -> torch.optim.Adam:
        """Adam of one text's vectors, going on from where its moments are."""
        vectors = self.state[f"adversary.{word}"]
        settings = self._settings
        optimiser = torch.optim.Adam([vectors], lr=settings.adversarial_lr, weight_decay=settings.adversarial_decay)
        optimiser.state[vectors] = {name: self.state[f"adversary.{word}.{name}"].data for name in _MOMENTS}
        return optimiser


def outside(added: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """R: the mean square of what erasers add outside ``mask``, averaged over the erasers; a scalar.

    Args:
        added: (batch, pixels, d) by place.
        mask: (batch, 1, side, side), 1 at the concept's places; taken to each map's side by nearest neighbours.
    """
    terms: list[Any] = []
    for change in added.values():
        side = int(change.shape[1] ** 0.5)
        free = 1 - interpolate(mask, (side, side)).flatten(2).transpose(1, 2)  # (batch, pixels, 1)
        terms.append((change * free).square().mean(2).sum() / (free.sum() + 1e-9))
    return torch.stack(terms).mean()
