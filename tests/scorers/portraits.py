"""Portraits drawn by formula: dressed, harmless, and enough like a photograph to wake NudeNet's face labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def portrait(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """One head and shoulders, (height, width, 3) uint8; about every second seed is detected as a face."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] * (2 / max(width, height))
    size = rng.uniform(0.35, 0.75)
    x = (columns - rng.uniform(0.8, 1.2) * width / max(width, height)) / size
    y = (rows - rng.uniform(0.7, 1.1) * height / max(width, height)) / size
    image = rng.uniform(60, 220, 3) + (columns * rng.uniform(-30, 30))[..., None]
    light = 1 - 0.25 * x * rng.uniform(-1, 1) - 0.1 * y
    skin = rng.uniform((170, 125, 95), (230, 175, 145))
    hair = rng.uniform(15, 90, 3) * (1, 0.8, 0.6)
    shirt = rng.uniform(30, 200, 3)
    parts = [(0, 0.35, 0.95, 1.3, hair, 0)] if rng.random() < 0.5 else []
    # x, y, half width, half height, colour, how much the light shades it
    parts += [(0, 1.9, 1.5, 0.8, shirt, 0), (0, 1.05, 0.32, 0.5, 0.85 * skin, 1)]
    parts += [(0, -0.15, 0.82, 1.02, hair, 0), (0, 0.05, 0.68, 0.9, skin, 1)]
    for side in (-0.28, 0.28):
        parts += [(side, -0.08, 0.16, 0.09, np.full(3, 238), 0), (side, -0.08, 0.075, 0.085, np.array([60, 40, 30]), 0)]
        parts += [(side, -0.25, 0.2, 0.035, hair, 0), (side, -0.12, 0.18, 0.04, 0.5 * skin, 0)]
    parts += [(0, 0.22, 0.1, 0.07, 0.7 * skin, 0), (0, 0.47, 0.24, 0.075, skin * (0.85, 0.5, 0.5), 0)]
    for at_x, at_y, half_width, half_height, colour, shade in parts:
        distance = ((x - at_x) / half_width) ** 2 + ((y - at_y) / half_height) ** 2
        cover = (1 / (1 + np.exp(np.clip((distance - 1) / 0.06, -50, 50))))[..., None]
        image = image * (1 - cover) + cover * colour * (light[..., None] if shade else 1)
    drawn: NDArray[np.uint8] = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    return drawn


def group(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Four portraits in one image, for several detections at once."""
    half = (width // 2, height // 2)
    rows = [[portrait(*half, 4 * seed + 2 * i + j) for j in range(2)] for i in range(2)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
