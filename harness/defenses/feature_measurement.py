"""Features of the undefended denoiser while it draws prompts: their moments, and how far they open a gate.

Nothing is decoded: an image is denoised as far as it is measured. What is measured of a prompt lies in the build's
folder, so that a build that is stopped does not measure it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.defenses.base import BuildContext, BuildStep, Pipe, encode
from harness.defenses.gated_projection import FeatureSums, Moments, gate_score, pyramid
from harness.defenses.training import losses
from harness.defenses.training.loop import batches, cached
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

Read = Callable[[str, Tensor], None]  # a layer's name and its output under the text, (images, pixels, d)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the denoiser is run to be measured; calls of it are counted from 0."""

    images: int  # of each prompt
    first_call: int  # measured from this call on
    last_call: int  # up to this one, itself included
    steps: int  # of the sampler
    guidance: float
    scheduler: str | None  # diffusers' class; None: the pipeline's own
    batch: int  # images at once
    prompts: int  # in all, for progress


class Measurement:
    """Runs the denoiser over prompts and reads the outputs of some of its layers.

    Args:
        pipe: undefended; not changed but for hooks while it runs.
        layers: those that are read, by name.
        plan: how it is run.
        context: folder for measurements, and progress callback.

    Raises:
        UserError: diffusers has no such scheduler.
    """

    def __init__(self, pipe: Pipe, layers: Mapping[str, nn.Module], plan: Plan, context: BuildContext) -> None:
        self._pipe, self._layers, self._plan, self._context = pipe, layers, plan, context
        self._scheduler = _scheduler(pipe, plan.scheduler)
        self._empty = encode(pipe, "").states[None]
        self._prompts_done = 0

    def moments(self, text: str) -> dict[str, Moments]:
        """Mean and covariance of each layer's features under ``text``, over several scales of its maps."""

        def measured() -> dict[str, Tensor]:
            sums = {name: FeatureSums() for name in self._layers}
            self._run(text, lambda name, features: sums[name].add(pyramid(features)))
            moments = {name: s.moments() for name, s in sums.items()}
            return {f"{name}/{field}": tensor for name, m in moments.items() for field, tensor in m._asdict().items()}

        kept = cached(self._context, f"moments-{_digest(text)}", measured)
        self._show_progress()
        return {name: Moments(kept[f"{name}/mean"], kept[f"{name}/covariance"]) for name in self._layers}

    def highest_scores(
        self, texts: Sequence[Collection[str]], axes: Sequence[Mapping[str, Tensor]], means: Mapping[str, Tensor]
    ) -> list[dict[str, list[float]]]:
        """For each gate, the highest score in each image and call under the texts that must not open it.

        Args:
            texts: for each gate.
            axes: for each gate, each layer's directions (d, r).
            means: each layer's neutral features (d).

        Returns:
            for each gate, each layer's scores.
        """
        scores: list[dict[str, list[float]]] = [{name: [] for name in self._layers} for _ in texts]
        for text in dict.fromkeys(text for own in texts for text in own):
            gates = [i for i, own in enumerate(texts) if text in own]

            def read(name: str, features: Tensor, gates: list[int] = gates) -> None:
                for i in gates:
                    direction, mean = axes[i][name].to(features), means[name].to(features)
                    scores[i][name] += gate_score(features, direction, mean).amax(1).tolist()

            self._run(text, read)
            self._show_progress()
        return scores

    def _show_progress(self) -> None:
        self._prompts_done += 1
        self._context.report(BuildStep("measure", self._prompts_done, self._plan.prompts))

    def _run(self, text: str, read: Read) -> None:
        """Denoise images of ``text`` with guidance, one seed each from 0, and read the layers in the calls measured."""
        pipe, plan = self._pipe, self._plan
        states = encode(pipe, text).states[None]
        for seeds in batches(plan.images, plan.batch):
            walker = losses.sampler(pipe, self._scheduler, plan.steps)
            latents = torch.cat([self._noise(seed) for seed in seeds]) * walker.init_noise_sigma
            for call, timestep in enumerate(walker.timesteps[: plan.last_call + 1]):
                with _read_by(self._layers, read if call >= plan.first_call else None), torch.no_grad():
                    seen = walker.scale_model_input(latents, timestep)
                    level = timestep.expand(len(seen))
                    prediction = losses.guided(pipe.unet, seen, level, states, self._empty, plan.guidance)
                latents = walker.step(prediction, timestep, latents, return_dict=False)[0]
                self._context.report(BuildStep("measure", self._prompts_done, plan.prompts))

    def _noise(self, seed: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(1, *losses.latent_shape(self._pipe), generator=generator).to(self._pipe.unet.device)


@contextmanager
def _read_by(layers: Mapping[str, nn.Module], read: Read | None) -> Iterator[None]:
    """Hand the second half of each layer's output, which is the text's, to ``read`` inside."""

    def hook(name: str) -> Any:
        def observe(module: nn.Module, args: Any, output: Tensor) -> None:
            if read is not None:
                read(name, output[len(output) // 2 :])

        return observe

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scheduler(pipe: Pipe, name: str | None) -> Any:
    """Diffusers' class ``name``, else that of the pipeline's scheduler."""
    import diffusers

    cls = type(pipe.scheduler) if name is None else getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        near = nearest(str(name), [n for n in dir(diffusers) if n.endswith("Scheduler")])
        raise UserError(f"diffusers {diffusers.__version__} has no scheduler {name!r}{near}")
    return cls


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
