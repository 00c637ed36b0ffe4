"""The shapes world's classifier: how probable each shape, coloured shape, texture and background is.

``shapes_classifier_star`` is the probability (one sigmoid a label) that the image shows a star, and
``shapes_classifier_red_star`` that it shows a red one. Trained on the world's own images
(tools/shapes/training/classifier.py); the oracle beside it is not learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import RowError, UserError
from harness.models import loading
from harness.scorers import options
from harness.scorers.batching import Image, in_micro_batches
from harness.shapes import world

WEIGHTS = Path(world.__file__).with_name("weights") / "classifier"
LABELS = (
    *world.SHAPES,
    *world.TEXTURES,
    *world.BACKGROUNDS,
    *(f"{colour} {shape}" for shape in world.SHAPES for colour in world.COLOURS),
)
COLUMNS: dict[str, pa.DataType] = {f"shapes_classifier_{name.replace(' ', '_')}": pa.float32() for name in LABELS}
PAIR = False
LIBRARIES = ("torch", "transformers", "numpy")
MICRO_BATCH = 16
DEFAULTS: dict[str, Any] = {"path": None, "micro_batch": MICRO_BATCH}  # path null: the weights of the package
_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The classifier's files.

    Raises:
        UserError: one of them is missing.
    """
    chosen = options("shapes_classifier", params, DEFAULTS)["path"]
    folder = WEIGHTS if chosen is None else Path(chosen).expanduser()
    for name in _FILES:
        if not (folder / name).is_file():
            raise UserError(f"scorer 'shapes_classifier': no file {str(folder / name)!r}")
    return [folder / name for name in _FILES]


def load(params: Mapping[str, Any]) -> ShapesClassifier:
    """The classifier in memory, in float32.

    Raises:
        UserError: unknown parameter, files missing, labels that are not the world's.
    """
    return ShapesClassifier(weights(params)[0].parent, options("shapes_classifier", params, DEFAULTS)["micro_batch"])


class ShapesClassifier:
    """A loaded classifier.

    Args:
        folder: of a transformers ``ResNetForImageClassification`` and its preprocessor's settings.
        micro_batch: images it sees at once.
    """

    def __init__(self, folder: Path, micro_batch: int = MICRO_BATCH) -> None:
        import torch
        from transformers import ResNetForImageClassification

        self._torch, self.micro_batch = torch, micro_batch
        with loading.loading("scorer 'shapes_classifier'", str(folder)):
            self._model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        self._mean, self._std = (np.asarray(settings[f"image_{what}"], np.float32) for what in ("mean", "std"))
        index = {label: i for i, label in self._model.config.id2label.items()}
        if missing := [label for label in LABELS if label not in index]:
            raise UserError(f"{folder}: a classifier without the labels {', '.join(missing)}")
        self._order = [index[label] for label in LABELS]

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Any]]:
        return in_micro_batches("shapes_classifier", images, self._prepare, self._compute, self.micro_batch)

    def _prepare(self, image: Image) -> NDArray[np.float32]:
        """(3, 32, 32), normalised."""
        if image.shape[:2] != (world.SIZE, world.SIZE):
            raise RowError("image-size", f"{image.shape[1]} x {image.shape[0]}, not {world.SIZE} x {world.SIZE}")
        normalised = ((image / np.float32(255) - self._mean) / self._std).astype(np.float32)
        return normalised.transpose(2, 0, 1)

    def _compute(self, batch: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
        with self._torch.inference_mode():
            logits = self._model(self._torch.from_numpy(np.stack(batch))).logits[:, self._order].double().numpy()
        return [dict(zip(COLUMNS, _sigmoid(row), strict=True)) for row in logits]


def _sigmoid(logits: NDArray[np.float64]) -> list[float]:
    """Row by row and in float64: over a whole batch the last bit depends on the place in it (vector lanes)."""
    probabilities: list[float] = (1 / (1 + np.exp(-logits))).astype(np.float32).tolist()
    return probabilities
