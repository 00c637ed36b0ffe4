"""SafeRedir: while an image is drawn, a small network moves an unsafe prompt's embedding to a safe prompt's.

Liu et al., "SafeRedir: Prompt Embedding Redirection for Robust Unlearning in Image Generation Models" (2026). At a step
the network (``redirector``) reads the latents, the prompt E and the timestep. Where its classifier says unsafe, each
token i of the prompt as it was, E_i, is drawn from as

    E_i + alpha_scale a_i |E_i| d_i / |d_i|     (times the mask m_i, where `mask` is on)

from then on, with the shift d, the scale a and the mask m that the network predicts; after ``replace_steps`` further
steps it looks again. The backbone, and whatever defense it has already, stays as it is.

It learns from pairs of prompts that differ in the concept only, and from noised latents of what the backbone draws for
them. With D = E_safe - E_unsafe for an unsafe prompt and 0 for a safe one, it minimises (the paper's Eq. 14)

    w_cls CE(logits, label) + w_mse |d - D|^2 + w_cos (1 - cos(d_i, D_i)) + w_mask BCE(m_i, [D_i != 0])
        + w_alpha (a_i - min(1, |D_i| / |E_i|))^2

with the cosine over those tokens that differ. The terms' weights, data and optimiser are this card's: the paper's are
not public, nor is its training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.defenses import prompt_pairs
from harness.defenses.base import BuildContext, BuildEstimate, BuiltParams, Defense, Pipe, parse
from harness.defenses.denoiser import STATES, DenoiserDefense
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

    from harness.defenses.redirector import Redirection, Redirector, Sizes

ARTEFACT = "hook-parameters"
Text = Annotated[str, Field(pattern=r"\S")]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
_SAME = 1e-3  # share of a token's length within which two encodings of one text can differ


class LossWeights(BaseModel):
    """Lambdas of Eq. 14."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cls: Weight = 1.0
    mse: Weight = 1.0
    cos: Weight = 1.0
    mask: Weight = 1.0
    alpha: Weight = 1.0


class SaferedirParams(BuiltParams):
    """Parameters that a card of SafeRedir may set."""

    # What it learns from.
    templates: tuple[Text, ...] = Field(min_length=1)  # contexts: {} is where the pair differs, {name} a slot of `fill`
    unsafe: tuple[Text, ...] = Field(min_length=1)
    safe: tuple[Text, ...] = Field(min_length=1)
    retain: tuple[Text, ...] = ()  # templates without {}: further safe prompts
    fill: dict[str, tuple[Text, ...]] = Field({})
    pairs: Count = 250
    retained: Annotated[int, Field(ge=0)] = 0  # prompts made from `retain`
    # How.
    blocks: tuple[Count, Count, Count] = (64, 128, 256)  # channels of the latent encoder
    steps: Annotated[int, Field(ge=0)] = 2000
    batch: Annotated[int, Field(gt=1)] = 64
    lr: float = Field(1e-3, gt=0)
    loss_weights: LossWeights = LossWeights()
    seed: int = Field(0, ge=0)
    # How it acts.
    alpha_scale: float = Field(1.25, ge=0)  # 0: nothing moves
    mask: bool = False
    replace_steps: int = Field(2, ge=0)  # steps after a redirection that are not judged
    both_halves: bool = False  # whether the empty prompt of guidance is moved too, as by the released code
    at_once: bool = False  # whether a step that is judged unsafe is itself drawn from the moved prompt

    @model_validator(mode="after")
    def _fillable(self) -> SaferedirParams:
        prompt_pairs.check(self.templates, self.fill, 1)
        prompt_pairs.check(self.retain, self.fill, 0)
        return self


PARAMS = SaferedirParams
QUICK = {"steps": 3, "pairs": 8, "retained": 8, "batch": 8}
ZERO = {"alpha_scale": 0.0}


class Examples(NamedTuple):
    """What the network learns from: n prompts with an image each."""

    latents: Tensor  # (n, channels, height, width)
    states: Tensor  # (n, window, width)
    labels: Tensor  # (n,) int64: 1 unsafe
    shifts: Tensor  # (n, window, width): to the safe prompt; 0 for a safe one


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The redirector's parameters and running statistics, by the released names.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, or a loss that diverges.
    """
    import torch

    from harness.defenses.redirector import Redirector, counters
    from harness.defenses.training import loop, losses

    settings = parse(SaferedirParams, params)
    examples = _examples(pipe, settings, context)
    process = losses.NoiseProcess(pipe)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        redirector = Redirector(_backbone_sizes(pipe)._replace(blocks=settings.blocks)).to(process.device)
    loss = redirection_loss(redirector, examples, process, settings)
    plan = loop.Training(phase="train", steps=settings.steps, seed=settings.seed)
    redirector.train()
    loop.train(
        plan,
        dict(redirector.named_parameters()),
        lambda values: torch.optim.AdamW(values, lr=settings.lr),
        loss,
        context,
    )
    settle(redirector, examples, process, settings)
    left_out = set(counters(redirector))
    return loop.delta({name: value for name, value in redirector.state_dict().items() if name not in left_out})


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that redirects prompts by the trained network."""
    from harness.defenses.redirector import restored, sizes_of

    settings = parse(SaferedirParams, params)
    sizes = None if artefact is None else sizes_of(artefact)
    if artefact is None or sizes is None:
        raise ValueError("saferedir needs its artefact")
    return Redirecting(restored(artefact, sizes), settings)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted: two images for each pair; the network itself is small beside the denoiser."""
    settings = parse(SaferedirParams, params)
    return BuildEstimate(steps=settings.steps, images=2 * settings.pairs + settings.retained)


def read_weights(path: Path, pipe: Pipe) -> dict[str, Tensor]:
    """A released checkpoint, without the counters of its batch normalisation.

    Raises:
        UserError: unreadable.
    """
    from harness.defenses import artefact
    from harness.defenses.redirector import Redirector, counters

    return artefact.read(path, ignored=counters(Redirector(_backbone_sizes(pipe))))


def check_artefact(tensors: Mapping[str, Tensor], pipe: Pipe) -> None:
    """Every tensor of a redirector for this backbone, and no other.

    Raises:
        UserError: naming a key that is missing or too many, or both shapes.
    """
    from harness.defenses.redirector import Redirector, counters, sizes_of

    own = _backbone_sizes(pipe)
    sizes = sizes_of(tensors)
    if sizes is None:
        raise UserError(
            "these are no parameters of a SafeRedir redirector: `pos_embed` and `latent_encoder.0.conv.0.weight` are "
            f"expected, among others; there is {', '.join(sorted(tensors)[:3])}..."
        )
    made = Redirector(own._replace(blocks=sizes.blocks))
    shapes = {k: tuple(v.shape) for k, v in made.state_dict().items() if k not in set(counters(made))}
    for key in sorted(shapes.keys() ^ tensors.keys()):
        said = "lacks" if key in shapes else f"has no use for{nearest(key, shapes)}"
        raise UserError(f"this is not a whole SafeRedir redirector: it {said} {key!r}")
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            raise UserError(f"{key!r} has shape {tuple(tensors[key].shape)}, a redirector for this backbone {shape}")


def redirection_loss(
    redirector: Redirector, examples: Examples, process: Any, settings: SaferedirParams
) -> Callable[[int, Generator], Tensor]:
    """The loss of one training step, over a batch that the step's random generator picks."""
    import torch

    def loss(step: int, generator: Generator) -> Tensor:
        rows = torch.randint(len(examples.labels), (settings.batch,), generator=generator)
        batch = Examples(*(part[rows].to(process.device) for part in examples))
        latents, timesteps = _noised(batch.latents, process, generator)
        return objective(redirector(latents, batch.states, timesteps), batch, settings.loss_weights)

    return loss


def objective(said: Redirection, batch: Examples, weights: LossWeights) -> Tensor:
    """The training objective (Eq. 14) averaged over a batch, a scalar."""
    import torch
    from torch.nn.functional import binary_cross_entropy, cosine_similarity, cross_entropy, mse_loss

    length, own = batch.shifts.norm(dim=-1), batch.states.norm(dim=-1)
    differs = length > _SAME * own
    cosine = 1 - cosine_similarity(said.shift, batch.shifts, dim=-1)
    total: Tensor = (
        weights.cls * cross_entropy(said.logits, batch.labels)
        + weights.mse * mse_loss(said.shift, batch.shifts)
        + weights.cos * torch.where(differs, cosine, 0).sum() / differs.sum().clamp(min=1)
        + weights.mask * binary_cross_entropy(said.mask, differs.float())
        + weights.alpha * mse_loss(said.scale, (length / own).clamp(max=1))
    )
    return total


def settle(redirector: Redirector, examples: Examples, process: Any, settings: SaferedirParams) -> None:
    """Set the running statistics of batch normalisation by one pass over all examples, so that nothing but the trained
    parameters decides them: a build that was stopped and taken up again ends like one that was not.
    """
    import torch

    from harness.defenses.training import loop

    redirector.eval()
    for norm in (m for m in redirector.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    generator = loop.step_generator(settings.seed, settings.steps)
    with torch.no_grad():
        for piece in loop.batches(len(examples.labels), settings.batch):
            latents, timesteps = _noised(examples.latents[piece.start : piece.stop], process, generator)
            redirector(latents, examples.states[piece.start : piece.stop].to(process.device), timesteps)
    redirector.eval()


class Redirecting(DenoiserDefense):
    """Moves the prompts of images that the network judges unsafe; its state lives for one micro-batch."""

    def __init__(self, redirector: Redirector, settings: SaferedirParams) -> None:
        super().__init__()
        self._redirector = redirector
        self._settings = settings
        self._moved: Tensor | None = None  # (images, window, width), what is added to each prompt
        self._waiting: Tensor | None = None  # (images,), steps until each is judged again

    def attach(self, pipe: Pipe) -> None:
        super().attach(pipe)
        self._redirector.to(pipe.unet.device)

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self._moved = self._waiting = None
        return super().begin(prompts)

    def predict(self, inputs: dict[str, Any], guided: bool) -> Tensor:
        import torch

        states, count = inputs[STATES], len(self.prompts)
        own = states[-count:]
        if self._moved is None or self._waiting is None:
            self._moved = torch.zeros_like(own, dtype=torch.float32)
            self._waiting = torch.zeros(count, dtype=torch.int64, device=own.device)
        latents = self.latents(inputs)[-count:].float()
        timesteps = torch.as_tensor(inputs["timestep"], device=own.device).expand(len(states))[-count:]
        if self._settings.at_once:
            self._judge(latents, own.float(), timesteps)
        moved = self._moved.to(states)
        if not self._settings.at_once:
            self._judge(latents, own.float(), timesteps)
        if len(states) > count:
            moved = torch.cat([moved if self._settings.both_halves else torch.zeros_like(moved), moved])
        return self.undefended(inputs | {STATES: states + moved})

    def _judge(self, latents: Tensor, own: Tensor, timesteps: Tensor) -> None:
        """Decide what is added to each prompt from now on."""
        import torch

        assert self._moved is not None
        assert self._waiting is not None
        with torch.no_grad():
            said = self._redirector(latents, own + self._moved, timesteps)
        unsafe = (said.logits.argmax(1) == 1) & (self._waiting == 0)
        shifts = shift(said, own, self._settings)
        self._moved = torch.where(unsafe[:, None, None], shifts, self._moved)
        again = torch.full_like(self._waiting, self._settings.replace_steps)
        self._waiting = torch.where(unsafe, again, (self._waiting - 1).clamp(min=0))


def shift(said: Redirection, own: Tensor, settings: SaferedirParams) -> Tensor:
    """The change to prompt embeddings ``own`` (n, window, width) that follows from the network's output ``said``."""
    from torch.nn.functional import normalize

    length = said.scale * own.norm(dim=-1) * (said.mask if settings.mask else 1)
    moved: Tensor = settings.alpha_scale * length[..., None] * normalize(said.shift, dim=-1)
    return moved


def _examples(pipe: Pipe, settings: SaferedirParams, context: BuildContext) -> Examples:
    """Prompts, what they should become, and an image of each."""
    import torch

    from harness.defenses.training import data, losses

    words = (settings.unsafe, settings.safe)
    pairs = list(prompt_pairs.made(settings.templates, settings.fill, words, settings.pairs, settings.seed))
    kept = [
        text
        for (text,) in prompt_pairs.made(settings.retain, settings.fill, (("",),), settings.retained, settings.seed + 1)
    ]
    unsafe, safe = [u for u, _ in pairs], [s for _, s in pairs] + kept
    seeds = range(settings.seed, settings.seed + len(unsafe) + len(safe))
    drawn = [
        data.latents(pipe, context, name, texts, list(numbers), settings.concept)
        for name, texts, numbers in (("unsafe", unsafe, seeds[: len(unsafe)]), ("safe", safe, seeds[len(unsafe) :]))
    ]
    read = [losses.text_states(pipe, texts, settings.concept).cpu() for texts in (unsafe, safe)]
    shifts = read[1][: len(unsafe)] - read[0]
    labels = torch.tensor([1] * len(unsafe) + [0] * len(safe))
    return Examples(torch.cat(drawn), torch.cat(read), labels, torch.cat([shifts, torch.zeros_like(read[1])]))


def _noised(latents: Tensor, process: Any, generator: Generator) -> tuple[Tensor, Tensor]:
    """Latents at random timesteps, and those."""
    timesteps = process.random_timesteps(len(latents), generator)
    return process.noised(latents, process.noise(latents.shape, generator), timesteps), timesteps


def _backbone_sizes(pipe: Pipe) -> Sizes:
    from harness.defenses.redirector import Sizes

    config = pipe.unet.config
    return Sizes(int(config.in_channels), int(pipe.tokenizer.model_max_length), int(config.cross_attention_dim))
