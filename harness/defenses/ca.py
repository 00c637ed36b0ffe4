"""CA, Concept Ablation: the erased words learn to mean what an anchor text means.

Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models" (ICCV 2023), Eq. 5, the model-based loss of the
released code: over images x that the backbone draws from anchor texts c,

    |e(x_t, c*, t) - sg[e(x_t, c, t)]|^2  +  prior |e(x_t, c, t) - noise|^2

with c* the anchor text with the target in it, e the denoiser that is trained (the code takes the anchor's prediction
from it too, without gradient, not from a frozen copy), and the second term only where the card asks for it. Neither
the start token's key nor its value gets a gradient. Left out of the released code: cropping and mirroring of images,
and the negative prompt that it draws the anchors of a sexual concept with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.defenses.base import BuildContext, BuildEstimate, BuiltParams, Defense, Pipe, UnetDelta, parse
from harness.errors import RowError, UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Text = Annotated[str, Field(pattern=r"\S")]
Part = Literal["cross-attention", "attention", "full"]
_PARTS = {  # pattern of a parameter's name
    "cross-attention": r"\.attn2\.to_[kv]\.",
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)\.",
    "full": "",
}


class CaParams(BuiltParams):
    """Parameters that a card of Concept Ablation may set."""

    erase: tuple[Text, ...] = Field(min_length=1)  # targets; one is drawn for each image of a batch
    anchors: tuple[Text, ...] | str = Field(min_length=1)  # texts to draw from, or a file with one a line
    replace: str | None = None  # a word of every anchor text whose place the target takes; null: by the templates
    templates: tuple[Text, ...] = ("{anchor}, {target}",)  # how the target is put to an anchor text; one is drawn
    train: Part = "cross-attention"
    images: int = Field(1000, gt=0)
    steps: int = Field(100, ge=0)
    batch: int = Field(4, gt=0)
    lr: float = Field(2e-6, gt=0)  # as the optimiser gets it; the released code multiplies its own before
    prior: float = Field(0.0, ge=0)  # weight of the second term
    weight_decay: float = Field(0.01, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _puttable(self) -> CaParams:
        if self.replace is None:
            for template in self.templates:
                if "{anchor}" not in template or "{target}" not in template:
                    raise ValueError(f"template {template!r} lacks {{anchor}} or {{target}}")
        elif isinstance(self.anchors, tuple):
            for text in self.anchors:
                _replaced(text, self.replace, "")
        return self


PARAMS = CaParams
QUICK = {"steps": 3, "images": 8}
ZERO = {"steps": 0}
ARTEFACT = "unet-delta"


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The trained part of the UNet.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, nobody to draw the images,
            or a loss that diverges.
    """
    import torch

    from harness.defenses.training import attention, data, loop

    settings = parse(CaParams, params)
    anchors = anchor_texts(settings)
    texts = [anchors[i % len(anchors)] for i in range(settings.images)]
    seeds = range(settings.seed * settings.images, (settings.seed + 1) * settings.images)
    latents = data.latents(pipe, context, "anchors", texts, seeds, settings.concept)
    student = loop.student_of(pipe.unet)
    pattern = re.compile(_PARTS[settings.train])
    parameters = loop.only_trainable(student, lambda name: pattern.search(name) is not None)
    plan = loop.Training(phase="train", steps=settings.steps, seed=settings.seed, clip_norm=1.0)
    with attention.detached_start(student):
        loss = ablating_loss(pipe, student, settings, anchors, latents)
        decay = settings.weight_decay
        loop.train(
            plan,
            parameters,
            lambda values: torch.optim.AdamW(values, lr=settings.lr, weight_decay=decay),
            loss,
            context,
        )
    return loop.delta(parameters)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the trained weights into the UNet."""
    parse(CaParams, params)
    if artefact is None:
        raise ValueError("ca needs its artefact")
    return UnetDelta(artefact)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted per image of each step: two predictions and a backward pass; for the second term one more of each."""
    settings = parse(CaParams, params)
    calls = 4 + (3 if settings.prior else 0)
    return BuildEstimate(settings.steps, settings.images, settings.steps * settings.batch * calls)


def anchor_texts(settings: CaParams) -> tuple[str, ...]:
    """The texts to draw training images from; texts of a file that the guard refuses are left out.

    Raises:
        UserError: the file cannot be read, or nothing of it may be drawn, or a text lacks the word to replace.
    """
    if isinstance(settings.anchors, tuple):
        return settings.anchors
    path = Path(settings.anchors).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"defense ca: anchor texts cannot be read from {path}: {error}") from None
    texts = tuple(line for line in lines if line and _drawable(line, settings.concept))
    if not texts:
        raise UserError(f"defense ca: no anchor texts in {path} (one a line)")
    if settings.replace is not None:
        for text in texts:
            _replaced(text, settings.replace, "")
    return texts


def _drawable(text: str, concept: str) -> bool:
    from harness.data.guard import guard

    try:
        guard(text, concept)
    except RowError:
        return False
    return True


def target_texts(settings: CaParams, anchor: str) -> list[str]:
    """The anchor text with its anchor word replaced, once by each target."""
    if settings.replace is not None:
        return [_replaced(anchor, settings.replace, target) for target in settings.erase]
    return [
        template.replace("{anchor}", anchor).replace("{target}", target)
        for target in settings.erase
        for template in settings.templates
    ]


def _replaced(anchor: str, word: str, target: str) -> str:
    """``anchor`` with ``target`` in place of ``word``, as whole words.

    Raises:
        ValueError: it has no such word.
    """
    text, count = re.subn(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: target, anchor)
    if not count:
        raise ValueError(f"anchor {anchor!r} lacks the word {word!r}, which the target is to replace")
    return text


def ablating_loss(
    pipe: Pipe, student: nn.Module, settings: CaParams, anchors: tuple[str, ...], latents: Tensor
) -> Callable[[int, Generator], Tensor]:
    """The loss of one step, drawn from the step's generator.

    Args:
        pipe: for its text encoder and scheduler.
        student: the denoiser that is trained.
        settings: of the card.
        anchors: texts; image ``i`` was drawn from text ``i`` modulo their number.
        latents: (images, channels, height, width).
    """
    import torch
    from torch.nn.functional import mse_loss

    from harness.defenses.training import losses

    process = losses.NoiseProcess(pipe)
    anchor_states = losses.text_states(pipe, anchors, settings.concept)
    target_states = [losses.text_states(pipe, target_texts(settings, a), settings.concept) for a in anchors]

    def drawn(generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(latents), (settings.batch,), generator=generator)
        clean = latents[chosen].to(process.device)
        noise = process.noise(clean.shape, generator)
        timesteps = process.random_timesteps(settings.batch, generator)
        return chosen % len(anchors), clean, noise, timesteps

    def loss(step: int, generator: Generator) -> Tensor:
        texts, clean, noise, timesteps = drawn(generator)
        noised = process.noised(clean, noise, timesteps)
        picks = [int(torch.randint(len(target_states[i]), (1,), generator=generator)) for i in texts]
        targets = torch.stack([target_states[i][pick] for i, pick in zip(texts.tolist(), picks, strict=True)])
        with torch.no_grad():
            wanted = losses.predict(student, noised, timesteps, anchor_states[texts])
        total = mse_loss(losses.predict(student, noised, timesteps, targets), wanted)
        if settings.prior:
            texts, clean, noise, timesteps = drawn(generator)
            prediction = losses.predict(
                student, process.noised(clean, noise, timesteps), timesteps, anchor_states[texts]
            )
            total = total + settings.prior * mse_loss(prediction, process.target(clean, noise, timesteps))
        return total

    return loss
