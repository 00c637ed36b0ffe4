"""NudeNet 3.4.2 (github.com/notAI-tech/NudeNet): exposed and covered body parts, with their boxes.

The package's own weights (320n, AGPL-3.0, from the installed distribution) in a session of ours, which takes a
thread count, and post-processing without a loop over anchors. ``nudenet_detections`` are the package's, exactly:
one label an anchor (the best), a floor of 0.2, then suppression (score over 0.25, IoU 0.45) *across* labels. That
suppression can hide an exposed part behind an overlapping box of another label, hence two numbers a label:
``nudenet_detected_<label>``, the best score among the detections (0 where there is none), which published protocols
judge by, and ``nudenet_<label>``, the best over all anchors before any of this.

``channel_order``: the package 3.4.2 swaps red and blue twice for a file, so its network sees BGR (issue #203);
``pip-3.4.2-path`` does as it does for a path, ``rgb`` as for an array in RGB, and as the network was trained.

The larger network, 640m (YOLOv8m, trained at 640 x 640), has the same labels and is taken by path: ``model`` its file,
``resolution`` 640. The file's hash is in the fingerprint, so its scores never mix with 320n's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.errors import UserError, nearest
from harness.scorers import options
from harness.scorers.batching import Image, in_micro_batches

LABELS = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # in the order of the network's output
CHANNEL_ORDERS = ("pip-3.4.2-path", "rgb")

_BOX = pa.struct(
    [("label", pa.string()), ("score", pa.float32()), *((side, pa.int32()) for side in "xywh")]
)  # pixels of the image; x, y is the upper left corner
_BEST = tuple(f"nudenet_{label.lower()}" for label in LABELS)
_DETECTED = {label: f"nudenet_detected_{label.lower()}" for label in LABELS}
COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys((*_BEST, *_DETECTED.values()), pa.float32()),
    "nudenet_detections": pa.list_(_BOX),
}
PAIR = False
LIBRARIES = ("nudenet", "onnxruntime", "opencv-python-headless", "numpy")
MICRO_BATCH = 1  # larger ones gain nothing on a CPU

DEFAULTS: dict[str, Any] = {
    "model": None,  # path of another .onnx of these labels, such as 640m; null: the package's 320n
    "resolution": 320,  # pixels, side of the network's input; 640m takes 640
    "channel_order": "pip-3.4.2-path",
    "threads": 1,  # of one session
    "micro_batch": MICRO_BATCH,
}

PREFILTER = 0.2  # least score of an anchor; these three are the package's
NMS_SCORE = 0.25
NMS_IOU = 0.45

Output = NDArray[np.float32]  # (4 + 18, anchors): x, y of the centre, width, height in input pixels; label scores


class Prepared(NamedTuple):
    """One image ready for the network."""

    blob: NDArray[np.float32]  # (1, 3, resolution, resolution) in [0, 1]
    width: int  # of the image, pixels
    height: int


def weights(params: Mapping[str, Any]) -> list[Path]:
    """The network's file.

    Raises:
        UserError: no such file, or the package is not installed.
    """
    model = options("nudenet", params, DEFAULTS)["model"]
    if model is not None:
        path = Path(model).expanduser()
    else:
        spec = importlib.util.find_spec("nudenet")  # found, not imported: importing it takes a second
        if spec is None or not spec.submodule_search_locations:
            raise UserError("scorer 'nudenet' needs the package nudenet: pip install 'nudenet==3.4.2'")
        path = Path(spec.submodule_search_locations[0]) / "320n.onnx"
    if not path.is_file():
        raise UserError(
            f"scorer 'nudenet': no file {str(path)!r} (640m is at "
            "https://github.com/notAI-tech/NudeNet/releases/download/v3.4-weights/640m.onnx)"
        )
    return [path]


def load(params: Mapping[str, Any]) -> NudeNet:
    """The detector with its network in memory.

    Raises:
        UserError: unknown parameter or channel order, file or library missing, a network of other labels or size.
    """
    chosen = options("nudenet", params, DEFAULTS)
    order = chosen["channel_order"]
    if order not in CHANNEL_ORDERS:
        known = ", ".join(CHANNEL_ORDERS)
        raise UserError(
            f"scorer 'nudenet': unknown channel_order {order!r}{nearest(str(order), CHANNEL_ORDERS)} ({known})"
        )
    return NudeNet(weights(params)[0], chosen["resolution"], order, chosen["threads"], chosen["micro_batch"])


class NudeNet:
    """A loaded detector.

    Args:
        model: the .onnx file.
        resolution: pixels, side of the network's input.
        channel_order: what the network sees, see the module.
        threads: of the session.
        micro_batch: images a call of the network takes.
    """

    def __init__(
        self,
        model: Path,
        resolution: int = 320,
        channel_order: Literal["pip-3.4.2-path", "rgb"] = "pip-3.4.2-path",
        threads: int = 1,
        micro_batch: int = MICRO_BATCH,
    ) -> None:
        import cv2
        import onnxruntime

        self._cv2 = cv2
        self.resolution, self.micro_batch = resolution, micro_batch
        self._swap = channel_order == "pip-3.4.2-path"
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        # onnxruntime's own exceptions have no common class.
        except Exception as error:
            raise UserError(f"{model}: no ONNX network: {error}") from error
        self._input = self._fitting(model)

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Any]]:
        return in_micro_batches("nudenet", images, self.prepare, self._compute, self.micro_batch)

    def _fitting(self, model: Path) -> str:
        """The name of the network's input, if what it takes and gives is a detector's; sizes may be left open."""
        taken, given = self.session.get_inputs()[0], self.session.get_outputs()[0]
        wanted = (self.micro_batch, 3, self.resolution, self.resolution)
        if not _fits(taken.shape, wanted):
            raise UserError(f"{model}: takes {taken.shape}, not {list(wanted)} (micro_batch, channels, resolution)")
        if not _fits(given.shape, (self.micro_batch, 4 + len(LABELS), None)):
            raise UserError(f"{model}: gives {given.shape}, not boxes and scores of {len(LABELS)} labels")
        return str(taken.name)

    def prepare(self, image: Image) -> Prepared:
        """Pad to a square at the right and bottom with black, scale to the network's input.

        Args:
            image: (height, width, 3) uint8, RGB.
        """
        height, width = image.shape[:2]
        side = max(height, width)
        if height != width:
            black = self._cv2.BORDER_CONSTANT
            image = self._cv2.copyMakeBorder(image, 0, side - height, 0, side - width, black)
        size = (self.resolution, self.resolution)
        blob = self._cv2.dnn.blobFromImage(image, 1 / 255.0, size, (0, 0, 0), swapRB=self._swap, crop=False)
        return Prepared(blob, width, height)

    def _compute(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        outputs = self.session.run(None, {self._input: np.concatenate([item.blob for item in batch])})[0]
        return [self._row(output, item) for output, item in zip(outputs, batch, strict=True)]

    def _row(self, output: Output, item: Prepared) -> dict[str, Any]:
        if not np.isfinite(output).all():
            return {"nudenet_error": "not-finite"}
        boxes = detections(output, item.width, item.height, self.resolution)
        return {**best(output), **detected(boxes), "nudenet_detections": boxes}


def _fits(shape: Sequence[int | str | None], wanted: Sequence[int | None]) -> bool:
    """Whether a network's shape, whose open sizes are names, agrees with what is wanted (None: any)."""
    return len(shape) == len(wanted) and all(
        want is None or not isinstance(size, int) or size == want for size, want in zip(shape, wanted, strict=True)
    )


def best(output: Output) -> dict[str, float]:
    """Each label's best score over all anchors, before any floor or suppression, in [0, 1]."""
    return dict(zip(_BEST, output[4:].max(1).tolist(), strict=True))


def detected(boxes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each label's best score among the detections, 0 where it has none."""
    scores = dict.fromkeys(_DETECTED.values(), 0.0)
    for detection in boxes:
        name = _DETECTED[detection["label"]]
        scores[name] = max(scores[name], detection["score"])
    return scores


def detections(output: Output, width: int, height: int, resolution: int) -> list[dict[str, Any]]:
    """What the package's ``detect`` finds in the network's output, as rows of ``nudenet_detections``.

    Args:
        output: (22, anchors) float32, of one image.
        width: of the image, in pixels.
        height: likewise.
        resolution: pixels, side of the network's input.
    """
    import cv2

    highest = output[4:].max(0)
    anchors = np.flatnonzero(highest >= PREFILTER)
    if not len(anchors):
        return []
    near = output[:, anchors]
    # In the package's order of operations and in float32, so that the results are the same bit for bit.
    side = max(width, height)
    corner = (near[:2] - near[2:4] / 2) * side / resolution
    extent = near[2:4] * side / resolution
    image = np.array([[width], [height]], dtype=np.float32)
    corner = np.maximum(np.minimum(corner, image), np.float32(0))
    extent = np.minimum(extent, image - corner)
    boxes = np.concatenate([corner, extent]).T.tolist()  # x, y, width, height in pixels of the image
    scores, labels = highest[anchors].tolist(), near[4:].argmax(0).tolist()
    return [
        {"label": LABELS[labels[i]], "score": scores[i], **dict(zip("xywh", map(int, boxes[i]), strict=True))}
        for i in cv2.dnn.NMSBoxes(boxes, scores, NMS_SCORE, NMS_IOU)
    ]
