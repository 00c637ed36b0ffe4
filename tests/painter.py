"""Training images for tests: what a build's context is asked to draw, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from harness.defenses.base import BuildContext, BuildStep


class StoppedError(Exception):
    """Stands for a process that is killed."""


@dataclass
class Painter:
    """Paints noise in a colour of its own for each text, and keeps what it was asked and told.

    ``stop_at`` raises once that many steps of ``phase`` were told.
    """

    asked: list[tuple[str, int]] = field(default_factory=list)
    told: list[BuildStep] = field(default_factory=list)
    stop_at: tuple[str, int] | None = None

    def context(self, folder: Path | None = None) -> BuildContext:
        return BuildContext(folder=folder, report=self.hear, draw=self.draw)

    def hear(self, step: BuildStep) -> None:
        self.told.append(step)
        if self.stop_at == (step.phase, step.step):
            raise StoppedError

    def draw(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        self.asked.extend(zip(texts, seeds, strict=True))
        return [self._image(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def losses(self, phase: str = "train") -> list[float]:
        return [s.loss for s in self.told if s.phase == phase and s.loss is not None]

    @staticmethod
    def _image(text: str, seed: int) -> Image.Image:
        colour = np.random.default_rng(sum(map(ord, text))).integers(0, 200, 3)
        noise = np.random.default_rng(seed).integers(0, 56, (32, 32, 3))
        return Image.fromarray((colour + noise).astype(np.uint8))
