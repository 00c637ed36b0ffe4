"""Co-Erasing: a text and images of the concept erase it together, from a denoiser that ESD has already erased it from.

Li et al., "One Image is Worth a Thousand Words: A Usability-Preservable Text-Image Collaborative Erasing Framework"
(ICML 2025). The undefended backbone draws images of the concept; an IP-Adapter (`image_adapter`) shows one of them, i,
to the denoiser beside the text c, and with e1 the denoiser after ESD and e the one that is trained further,

    |e(x, c, i, t) - (e1(x, 0, t) - eta (e1(x, c, i, t) - e1(x, 0, t)))|^2

is minimised over blurred, partly denoised latents x. Defended images are drawn from texts alone, as ever.

The image's tokens are refined by the text first. ``guide: text`` is the released code at f9b06b0, ``image`` the same
file at 23c71a8, whose roles of query and values are swapped. That code runs the sampler's timesteps backwards and
without guidance while it makes x, which leaves x nearly pure noise; here x is made as in the first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from harness.defenses import esd
from harness.defenses.base import INCOMPLETE, BuildContext, BuildEstimate, BuiltParams, Defense, Pipe, UnetDelta, parse
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from harness.defenses.image_adapter import ImageAdapter

ARTEFACT = "unet-delta"
LIBRARIES = ("torchvision",)
_LEFT_OVER = (".processor.to_k_ip.weight", ".processor.to_v_ip.weight")  # end keys that released files keep by mistake

Text = Annotated[str, Field(pattern=r"\S")]


class CoErasingParams(BuiltParams):
    """Parameters that a card of Co-Erasing may set."""

    erase: Text
    start: dict[str, Any] = Field(default_factory=dict)  # ESD's parameters for the model to start from
    image_prompts: tuple[Text, ...] = Field(min_length=1)  # of the concept, drawn in turn
    images: int = Field(200, ge=1)
    image_encoder: str  # a folder or hub:OWNER/REPO
    image_adapter: str | None = None  # a released IP-Adapter's file or hub:OWNER/REPO@COMMIT/PATH; null: one is trained
    adapter_prompts: tuple[Text, ...] = ()  # images of these, drawn in turn, and of the concept train it
    adapter_images: int = Field(0, ge=0)
    adapter_steps: int = Field(1000, ge=0)
    adapter_lr: float = Field(1e-4, gt=0)
    adapter_batch: int = Field(8, ge=1)
    guide: Literal["text", "image", "none"] = "text"
    blur: int = Field(5, ge=0)  # side of the Gaussian kernel over latents, odd; 0: none
    train: esd.Part = "full"
    steps: int = Field(1500, ge=0)
    lr: float = Field(1e-5, gt=0)
    eta: float = Field(1.0, ge=0)
    sampler_steps: int = Field(50, gt=1)
    guidance: float = 3.0  # while x is made
    batch: int = Field(1, gt=0)  # latents a step, all at one noise level; the paper's is 1
    seed: int = Field(0, ge=0)

    @field_validator("blur")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value and value % 2 == 0:
            raise ValueError(f"a blur's kernel has an odd side, not {value}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> CoErasingParams:
        started(self)
        if self.weights is None and self.image_adapter is None and not self.adapter_prompts:
            raise PydanticCustomError(
                INCOMPLETE,
                "it needs an `image_adapter`, a released IP-Adapter's file, or `adapter_prompts` to train one",
            )
        return self


PARAMS = CoErasingParams
QUICK = {"steps": 2, "images": 2, "adapter_images": 4, "adapter_steps": 2, "start": {"steps": 2}}
ZERO = {"steps": 0, "start": {"steps": 0}}


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """The tensors of the UNet that the two stages train.

    Returns:
        UNet key to float32 tensor.

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, an image encoder or adapter
            that is not here or does not fit, or a loss that diverges.
    """
    import torch

    from harness.defenses.training import loop

    settings = parse(CoErasingParams, params)
    first = esd.build(pipe, started(settings).model_dump(), context)
    adapter, embeddings = _images(pipe, settings, context)
    adapter.requires_grad_(False)
    reference, student = _after(pipe, first), _after(pipe, first)
    parameters = loop.only_trainable(student, esd.part(student, settings.train))
    plan = loop.Training(phase="images", steps=settings.steps, seed=settings.seed)
    loss = collaborative_loss(pipe, student, reference, adapter, embeddings, settings)
    loop.train(plan, parameters, lambda values: torch.optim.Adam(values, lr=settings.lr), loss, context)
    return first | loop.delta(parameters)


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that puts the trained weights, built or published, into the UNet."""
    parse(CoErasingParams, params)
    if artefact is None:
        raise ValueError("co_erasing needs its artefact")
    return UnetDelta(artefact)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """ESD's build, images of the concept and, where none is released, an adapter's training, then the second stage."""
    settings = parse(CoErasingParams, params)
    first = esd.estimate(started(settings).model_dump())
    own = 0 if settings.image_adapter is not None else settings.adapter_steps
    calls = 2 * (settings.sampler_steps // 2) + 2 + 3
    drawn = settings.images + (settings.adapter_images if own else 0)
    return BuildEstimate(
        first.steps + own + settings.steps,
        drawn,
        first.denoiser_calls + 3 * own * settings.adapter_batch + settings.steps * settings.batch * calls,
    )


def read_weights(path: Path, pipe: Pipe) -> dict[str, Tensor]:
    """A published UNet, without the adapter's tensors that the released code's files keep by mistake."""
    from harness.defenses import artefact

    return {key: tensor for key, tensor in artefact.read(path).items() if not key.endswith(_LEFT_OVER)}


def started(settings: CoErasingParams) -> esd.EsdParams:
    """ESD's parameters: those of the card's ``start``, over what it shares with Co-Erasing.

    Raises:
        UserError: a bad parameter, or one that is the run's own or would not be used.
    """
    for key in ("concept", "weights", "erase"):
        if key in settings.start:
            raise UserError(f"defense co_erasing: start: it takes no {key!r} (ESD is built here, for the same text)")
    shared = {"erase": [settings.erase], "concept": settings.concept, "seed": settings.seed}
    return parse(esd.EsdParams, {**shared, **settings.start})


def collaborative_loss(
    pipe: Pipe,
    student: nn.Module,
    reference: nn.Module,
    adapter: ImageAdapter,
    embeddings: Tensor,
    settings: CoErasingParams,
) -> Callable[[int, Generator], Tensor]:
    """The loss of one step of the second stage, as a function of the step's number and its random generator."""
    import torch
    from diffusers import DDIMScheduler
    from torch.nn.functional import mse_loss

    from harness.defenses.image_adapter import guided_tokens
    from harness.defenses.training import losses

    process = losses.NoiseProcess(pipe)
    text = losses.text_states(pipe, [settings.erase], settings.concept)
    empty = losses.text_states(pipe, [""], settings.concept)
    walker = losses.sampler(pipe, DDIMScheduler, settings.sampler_steps)

    def loss(step: int, generator: Generator) -> Tensor:
        image = int(torch.randint(len(embeddings), (1,), generator=generator))
        stop = int(torch.randint(settings.sampler_steps, (1,), generator=generator))
        noise = process.noise((settings.batch, *losses.latent_shape(pipe)), generator)
        partial = losses.partly_denoised(student, walker, noise, stop, (text, empty), settings.guidance)
        latents = blurred(partial.latents, settings.blur)
        level = losses.level(process.timesteps, settings.sampler_steps, stop, generator)
        timesteps = torch.full((settings.batch,), level, device=process.device)
        with torch.no_grad():
            tokens = guided_tokens(adapter.tokens(embeddings[image : image + 1].to(text)), text, settings.guide)
            without = losses.predict(reference, latents, timesteps, empty)
            shown = adapter.predict(reference, latents, timesteps, text, tokens)
        target = without - settings.eta * (shown - without)
        return mse_loss(adapter.predict(student, latents, timesteps, text, tokens), target)

    return loss


def blurred(latents: Tensor, side: int) -> Tensor:
    """``latents`` (batch, channels, height, width) under a Gaussian kernel of ``side``; 0: as they are."""
    from torchvision.transforms.functional import gaussian_blur

    if not side:
        return latents
    result: Tensor = gaussian_blur(latents, [side, side])
    return result


def _after(pipe: Pipe, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A float32 copy of the denoiser with ``tensors`` in their places; none of it asks for gradients."""
    import torch

    from harness.defenses.training import loop

    copied = loop.student_of(pipe.unet)
    state = copied.state_dict()
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)
    return copied


def _images(pipe: Pipe, settings: CoErasingParams, context: BuildContext) -> tuple[ImageAdapter, Tensor]:
    """The adapter, and the embeddings of the concept's images."""
    import torch

    from harness.defenses import image_adapter, locate
    from harness.defenses.training import losses

    prompts = _in_turn(settings.image_prompts, settings.images)
    concept = _drawn(pipe, settings, "concept", prompts, context)
    if settings.image_adapter is not None:
        adapter = image_adapter.released(locate(settings.image_adapter), pipe.unet)
        if adapter.proj.in_features != concept["embeddings"].shape[1]:
            raise UserError(
                f"defense co_erasing: the image adapter reads embeddings of width {adapter.proj.in_features}, "
                f"{settings.image_encoder} gives {concept['embeddings'].shape[1]}"
            )
        return adapter, concept["embeddings"]
    others = _in_turn(settings.adapter_prompts, settings.adapter_images)
    further = _drawn(pipe, settings, "others", others, context) if others else {}
    both = {key: torch.cat([value, further[key]]) if further else value for key, value in concept.items()}
    states = losses.text_states(pipe, [*prompts, *others], settings.concept)
    plan = (settings.adapter_steps, settings.adapter_lr, settings.adapter_batch, settings.seed)
    return image_adapter.trained(pipe, both["latents"], both["embeddings"], states, plan, context), concept[
        "embeddings"
    ]


def _in_turn(texts: Sequence[str], count: int) -> list[str]:
    return [texts[i % len(texts)] for i in range(count)]


def _drawn(
    pipe: Pipe, settings: CoErasingParams, name: str, prompts: Sequence[str], context: BuildContext
) -> dict[str, Tensor]:
    """``latents`` and ``embeddings`` of images that the undefended backbone draws, one for each prompt."""
    import torch

    from harness.defenses import image_adapter
    from harness.defenses.training import data, loop

    pieces: list[dict[str, Tensor]] = []
    for piece in loop.batches(len(prompts), 16):

        def made(piece: range = piece) -> dict[str, Tensor]:
            seeds = [settings.seed + i for i in piece]
            images = data.drawn(context, [prompts[i] for i in piece], seeds, settings.concept)
            embeddings = image_adapter.embedded(images, settings.image_encoder)
            return {"latents": data.encode_images(pipe, images), "embeddings": embeddings}

        pieces.append(loop.cached(context, f"{name}-{piece.start}", made))
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
