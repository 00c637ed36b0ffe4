"""Receler: small erasers beside the cross-attentions learn to take the concept out; the denoiser stays as it is.

Huang et al., "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight Erasers" (ECCV 2024).
After each cross-attention an eraser adds U GELU(D o) to its output o. With e the denoiser with erasers, e0 without, c
the erased text and 0 the empty one, the erasers minimise

    |e(x, [c, a], t) - (e0(x, 0, t) - eta (e0(x, c, t) - e0(x, 0, t)))|^2 + locality R

over partly denoised latents x. R is the mean square of what erasers add outside the concept's places, which the
undefended denoiser's own attention to c shows. Two trainers share the name:

- ``described``, the paper's: a are adversarial vectors in the place of the tokens after c. Before each step of the
  erasers they are moved so that e(x, [c, a], t) nears e0(x, c, t), what the undefended denoiser draws of c.
- ``released``, the authors' code (jasper0314-huang/Receler): its adversarial vectors are written into a copy of the
  text's states, so that the denoiser never sees them: the erasers learn from c alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.defenses.base import BuildContext, BuildEstimate, Defense, Pipe, parse
from harness.defenses.receler_params import RecelerParams
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

ARTEFACT = "adapter"
WEIGHTS = "eraser_weights.pt"  # the released code's file, beside eraser_config.json
_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")

PARAMS = RecelerParams
QUICK = {"steps": 2, "adversarial_steps": 1}
ZERO = {"steps": 0}


class Erasers(Defense):
    """Adds to the outputs of the cross-attentions by hooks.

    Args:
        tensors: as ``build`` gives them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._handles: list[Any] = []

    def attach(self, pipe: Pipe) -> None:
        """Hook the cross-attentions.

        Raises:
            UserError: the erasers are of another UNet; nothing is changed then.
        """
        if self._handles:
            raise RuntimeError("this defense is attached already")
        check_artefact(self._tensors, pipe)
        for place, attention in places(pipe.unet).items():
            weights = [self._tensors[f"{place}.{part}"].to(attention.to_q.weight) for part in _PARTS]
            self._handles.append(attention.register_forward_hook(_adding(weights)))

    def detach(self, pipe: Pipe) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that adds the erasers, built or released, to the cross-attentions."""
    parse(RecelerParams, params)
    if artefact is None:
        raise ValueError("receler needs its artefact")
    return Erasers(artefact)


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """Trained erasers; nothing else is trained.

    Returns:
        float32 tensors ``<block>.down.weight`` (rank, d), ``.down.bias``, ``.up.weight`` (d, rank) and ``.up.bias``,
        blocks named as the released code does (``down_blocks.0.attentions.0``).

    Raises:
        UserError: a bad parameter, a text the guard refuses or the window does not hold, no attention map of
            ``mask_side``, or a loss that diverges.
    """
    import torch

    from harness.defenses.receler_training import Trainer
    from harness.defenses.training import loop

    settings = parse(RecelerParams, params)
    student = loop.student_of(pipe.unet)
    erasers = new_erasers(student, settings.rank, settings.seed)
    trainer = Trainer(pipe, student, erasers, settings)

    def optimiser(values: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam([value for value in values if value.requires_grad], lr=settings.lr)

    plan = loop.Training(phase="train", steps=settings.steps, seed=settings.seed)
    with loop.frozen(pipe.unet), erasing(student, erasers, trainer.added):
        loop.train(plan, {**erasers, **trainer.state}, optimiser, trainer.loss, context)
    return loop.delta(erasers)


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted per step: half a guided sampling, two predictions, and a prediction and gradient per adversarial step."""
    settings = parse(RecelerParams, params)
    inner = settings.adversarial_steps if settings.variant == "described" else 0
    calls = 2 * (settings.sampler_steps // 2) + 2 + 3 * max(inner, 1)
    return BuildEstimate(steps=settings.steps, denoiser_calls=settings.steps * settings.batch * calls)


def read_weights(path: Path, pipe: Pipe) -> dict[str, Tensor]:
    """Erasers as the released code saves them, a folder's or a file's, or as ``build`` gives them.

    Raises:
        UserError: missing, unreadable, or not tensors under block names.
    """
    from harness.defenses import artefact

    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no weights at {file}")
    content = artefact.open_file(file)
    if not isinstance(content, dict) or not all(isinstance(tensors, dict) for tensors in content.values()):
        return artefact.read(file)  # as `build` gives them
    nested = {f"{block}.{part}": tensor for block, parts in content.items() for part, tensor in parts.items()}
    return artefact.floats(nested, str(file))


def check_artefact(tensors: Mapping[str, Tensor], pipe: Pipe) -> None:
    """Each cross-attention has its eraser, of its width, and there are no others.

    Raises:
        UserError: naming the key, and the nearest of those expected or both shapes.
    """
    blocks = places(pipe.unet)
    wanted = {f"{place}.{part}": (attention, part) for place, attention in blocks.items() for part in _PARTS}
    for key in tensors:
        if key not in wanted:
            raise UserError(f"receler: key {key!r} is not one of this UNet's erasers{nearest(key, wanted)}")
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise UserError(f"receler: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]!r}")
    for place, attention in blocks.items():
        width, rank = attention.to_out[0].weight.shape[0], len(tensors[f"{place}.down.bias"])
        for part, expected in zip(_PARTS, ((rank, width), (rank,), (width, rank), (width,)), strict=True):
            shape = tuple(tensors[f"{place}.{part}"].shape)
            if shape != expected:
                raise UserError(f"receler: '{place}.{part}' has shape {shape}, the UNet's attention needs {expected}")


def places(unet: Any) -> dict[str, Any]:
    """The cross-attentions by the name of the transformer block they are in, as the released code names erasers.

    Raises:
        UserError: it has none, or a transformer of several, which that code does not name apart.
    """
    named = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    blocks = {name.partition(".transformer_blocks.")[0]: module for name, module in named}
    if not named or len(blocks) < len(named):
        raise UserError(f"Receler's erasers need one cross-attention in each transformer; this UNet has {len(named)}")
    return blocks


def new_erasers(unet: Any, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Erasers that add nothing yet, on the UNet's device: D as torch begins linear maps, U zero."""
    import torch
    from torch import nn

    erasers: dict[str, nn.Parameter] = {}
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        for place, attention in places(unet).items():
            width = attention.to_out[0].weight.shape[0]
            down, up = nn.Linear(width, rank), nn.Linear(rank, width)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            made = (down.weight, down.bias, up.weight, up.bias)
            for part, value in zip(_PARTS, made, strict=True):
                erasers[f"{place}.{part}"] = nn.Parameter(value.detach().to(attention.to_q.weight.device))
    return erasers


@contextmanager
def erasing(unet: Any, erasers: Mapping[str, Tensor], added: dict[str, Tensor]) -> Iterator[None]:
    """Inside, ``unet`` draws with ``erasers``; what each added in the last call stands in ``added``, by place."""
    handles = [
        attention.register_forward_hook(_adding([erasers[f"{place}.{part}"] for part in _PARTS], added, place))
        for place, attention in places(unet).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(weights: list[Tensor], added: dict[str, Tensor] | None = None, place: str = "") -> Callable[..., Tensor]:
    """A hook that adds U GELU(D o) to a module's output o (batch, pixels, d)."""
    from torch.nn.functional import gelu, linear

    down, down_bias, up, up_bias = weights

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        change: Tensor = linear(gelu(linear(output, down, down_bias)), up, up_bias)
        if added is not None:
            added[place] = change
        return output + change

    return hook
