"""IP-Adapter: a denoiser that reads an image beside its text, by keys and values of its own in every cross-attention.

Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models" (2023). diffusers'
attention processors do the attending; here are the tokens that an image becomes, released files, and the training of an
adapter for a denoiser that none was released for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from harness.defenses.base import BuildContext, Pipe
from harness.defenses.training import loop, losses
from harness.defenses.training.attention import cross_attentions
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

TOKENS = 4  # that an image becomes
_EMPTY_SHARE = 0.5  # of the steps without a text, so that the image alone must say what is drawn


class ImageAdapter(nn.Module):
    """An adapter for one denoiser; it begins with the text's own keys and values.

    Args:
        unet: of the shape it is for; not changed.
        width: of image embeddings.
    """

    def __init__(self, unet: Any, width: int) -> None:
        super().__init__()
        attended = int(unet.config.cross_attention_dim)
        self.proj = nn.Linear(width, TOKENS * attended)
        self.norm = nn.LayerNorm(attended)
        self._processors: dict[str, IPAdapterAttnProcessor2_0] = {}
        self.adapters = nn.ModuleDict()
        places = {name: str(i) for i, name in enumerate(unet.attn_processors)}  # as released files number them
        for name, attention in cross_attentions(unet).items():
            rows = attention.to_k.weight.shape[0]
            made = IPAdapterAttnProcessor2_0(rows, attended, num_tokens=(TOKENS,), scale=1.0)
            with torch.no_grad():
                made.to_k_ip[0].weight.copy_(attention.to_k.weight)
                made.to_v_ip[0].weight.copy_(attention.to_v.weight)
            self._processors[name] = made
            self.adapters[places[f"{name}.processor"]] = made
        self.to(next(unet.parameters()).device)

    def tokens(self, embeddings: Tensor) -> Tensor:
        """Image embeddings (images, width) as text-like tokens (images, TOKENS, text width)."""
        rows: Tensor = self.norm(self.proj(embeddings).unflatten(-1, (TOKENS, -1)))
        return rows

    @contextmanager
    def reading(self, unet: Any) -> Iterator[None]:
        """Inside, ``unet`` reads images: see ``predict``."""
        before = {name: module.processor for name, module in cross_attentions(unet).items()}
        for name, module in cross_attentions(unet).items():
            module.set_processor(self._processors[name])
        try:
            yield
        finally:
            for name, module in cross_attentions(unet).items():
                module.set_processor(before[name])

    def predict(self, unet: Any, latents: Tensor, timesteps: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
        """The denoiser's prediction for a text and an image, like ``latents``.

        Args:
            unet: float32.
            latents: (batch, channels, height, width).
            timesteps: (batch,).
            states: of the text, (1, window, text width) or one for each.
            tokens: of the image, (1, tokens, text width) or one for each.
        """
        count = len(latents)
        both = (states.expand(count, -1, -1), [tokens.expand(count, -1, -1)])
        with self.reading(unet):
            prediction: Tensor = unet(latents, timesteps, encoder_hidden_states=both, return_dict=False)[0]
        return prediction


def released(path: Path, unet: Any) -> ImageAdapter:
    """An adapter from a released file, for a denoiser of the shape of ``unet``.

    Args:
        path: ``image_proj.*`` and ``ip_adapter.<number>.*`` by name, or the same one level down.
        unet: whose cross-attentions it must fit.

    Raises:
        UserError: missing, unreadable, or of another denoiser.
    """
    from harness.defenses import artefact

    if not path.is_file():
        raise UserError(f"no image adapter at {path}")
    content = artefact.open_file(path)
    flat = {f"{a}.{b}": t for a, part in content.items() if isinstance(part, dict) for b, t in part.items()} or content
    tensors = artefact.floats(flat, str(path))
    if "image_proj.proj.weight" not in tensors:
        raise UserError(f"{path}: holds no 'image_proj.proj.weight': only plain image adapters are read")
    adapter = ImageAdapter(unet, tensors["image_proj.proj.weight"].shape[1])
    wanted = {name: value.shape for name, value in adapter.named_parameters()}
    named = {_own_name(key): value for key, value in tensors.items()}
    for name, shape in wanted.items():
        if name not in named or named[name].shape != shape:
            seen = tuple(named[name].shape) if name in named else f"nothing{nearest(name, named)}"
            raise UserError(f"{path}: this denoiser's adapter needs {name!r} of shape {tuple(shape)}, it has {seen}")
    adapter.load_state_dict({name: named[name] for name in wanted})
    return adapter


def trained(
    pipe: Pipe,
    latents: Tensor,
    embeddings: Tensor,
    states: Tensor,
    plan: tuple[int, float, int, int],
    context: BuildContext,
) -> ImageAdapter:
    """An adapter that was trained to draw the images that it reads; the denoiser stays as it is.

    Args:
        pipe: undefended.
        latents: of the images.
        embeddings: of the same images, (images, width).
        states: of the text each was drawn from, (images, window, text width); half of the steps go without.
        plan: steps, learning rate, images a step, seed.
        context: progress callback and folder for checkpoints.
    """
    steps, lr, batch, seed = plan
    unet = loop.student_of(pipe.unet)
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = ImageAdapter(unet, embeddings.shape[1])
    process, empty = losses.NoiseProcess(pipe), losses.text_states(pipe, [""], "nudity")

    def loss(step: int, generator: Generator) -> Tensor:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        without = torch.rand(batch, generator=generator).to(process.device) < _EMPTY_SHARE
        texts = torch.where(without[:, None, None], empty, states[chosen].to(process.device))
        clean, timesteps = latents[chosen].to(process.device), process.random_timesteps(batch, generator)
        noise = process.noise(clean.shape, generator)
        tokens = adapter.tokens(embeddings[chosen].to(process.device))
        noisy = process.noised(clean, noise, timesteps)
        return mse_loss(adapter.predict(unet, noisy, timesteps, texts, tokens), process.target(clean, noise, timesteps))

    training = loop.Training(phase="image-adapter", steps=steps, seed=seed, clip_norm=1.0)
    parameters = dict(adapter.named_parameters())
    loop.train(training, parameters, lambda values: torch.optim.AdamW(values, lr=lr), loss, context)
    return adapter


def embedded(images: Sequence[Image], encoder: str) -> Tensor:
    """CLIP's projected embeddings of images, (images, width) float32 on the CPU.

    Args:
        images: any sizes.
        encoder: a folder, ``package:...`` or ``hub:OWNER/REPO``: a CLIP vision model with projection. Without a
            preprocessor beside it CLIP's own constants hold.

    Raises:
        UserError: not on this machine, or damaged.
    """
    from transformers import AutoConfig, CLIPImageProcessor, CLIPVisionModelWithProjection

    from harness.models import loading

    place = loading.place(encoder.removeprefix("hub:"))
    with loading.loading("the image encoder", place, f"get it with `hf download {place}`"):
        whole = AutoConfig.from_pretrained(place, local_files_only=True)
        config = getattr(whole, "vision_config", whole)  # of a CLIP with both towers, whose width it then is
        config.projection_dim = whole.projection_dim
        model = CLIPVisionModelWithProjection.from_pretrained(place, config=config, local_files_only=True).eval()
    side = int(model.config.image_size)
    try:
        prepare = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
    except OSError:
        prepare = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = prepare(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return torch.cat([model(pixel_values=piece).image_embeds for piece in pixels.split(32)]).float()


def _own_name(key: str) -> str:
    """A released tensor's name here."""
    name = key.removeprefix("image_proj.")
    if name.startswith("ip_adapter."):
        name = name.replace("ip_adapter.", "adapters.").replace("_ip.weight", "_ip.0.weight")
    return name


def guided_tokens(tokens: Tensor, states: Tensor, guide: str) -> Tensor:
    """Image tokens refined by a text: (1, tokens, width) by (1, window, width).

    Args:
        tokens: of an image.
        states: of the text.
        guide: ``text``: each image token becomes the mixture of the text's vectors that it attends to;
            ``image``: each of the text's vectors becomes the mixture of the image's tokens that it attends to;
            ``none``: as they are.
    """
    queries, values = {"text": (tokens, states), "image": (states, tokens), "none": (tokens, tokens)}[guide]
    if guide == "none":
        return tokens
    scores = queries @ values.transpose(1, 2) / values.shape[-1] ** 0.5
    mixed: Tensor = scores.softmax(-1) @ values
    return mixed
