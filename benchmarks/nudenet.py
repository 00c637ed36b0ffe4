"""NudeNet: ours beside its package, in one process, alternating, one thread each, least of several.

    python -m benchmarks.nudenet [--images 8] [--rounds 15]

Both get decoded 512 x 512 images and the same network. The package has no thread setting, so its session is
replaced by one of the same file with one thread. What counts is processor time (of all threads), which waiting for a
busy core does not lengthen; of each image the least of all rounds, and of these the mean.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Run as a file, this folder would come first, and `import nudenet` would find this very script.
sys.path[:] = [str(HERE.parent), str(HERE.parent / "tests" / "scorers")] + [
    entry for entry in sys.path if Path(entry or ".").resolve() != HERE
]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from nudenet import NudeDetector  # noqa: E402
from nudenet.nudenet import _postprocess  # noqa: E402
from portraits import group  # noqa: E402

from harness.scorers import nudenet as ours  # noqa: E402

SIZE = 512
RESOLUTION = 320


@dataclass
class Least:
    """The least processor seconds of each image, for either side."""

    package: dict[int, float] = field(default_factory=dict)
    ours: dict[int, float] = field(default_factory=dict)

    def ms(self) -> tuple[float, float]:
        """Mean over images, in milliseconds: the package's and ours."""
        package, own = (1000 * sum(side.values()) / len(side) for side in (self.package, self.ours))
        return package, own


def timed(least: dict[int, float], i: int, work: Callable[..., Any], *given: Any) -> Any:
    start = time.process_time()
    result = work(*given)
    least[i] = min(least.get(i, float("inf")), time.process_time() - start)
    return result


def single_thread(detector: NudeDetector) -> NudeDetector:
    """The package's detector on a session with one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    detector.onnx_session = onnxruntime.InferenceSession(str(ours.weights({})[0]), settings)
    return detector


def as_package(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"class": d["label"], "score": d["score"], "box": [d[side] for side in "xywh"]} for d in found]


def package_post(output: np.ndarray) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _postprocess([output], 0, 0, 1.0, 1.0, SIZE, SIZE, RESOLUTION, RESOLUTION)
    return found


def ours_post(output: np.ndarray) -> list[dict[str, Any]]:
    """All that we make of a network's output: the check of it, detections, both numbers of every label."""
    np.isfinite(output).all()
    found = ours.detections(output, SIZE, SIZE, RESOLUTION)
    ours.best(output)
    ours.detected(found)
    return found


def measure(images: int, rounds: int) -> tuple[Least, Least, int, int]:
    """Whole calls and post-processing; how many images of all have identical detections; boxes in all."""
    package, own = single_thread(NudeDetector()), ours.load({"threads": 1})
    shown_images = [group(SIZE, SIZE, seed) for seed in range(images)]
    as_read = [np.ascontiguousarray(p[..., ::-1]) for p in shown_images]  # as the package reads a file: BGR
    name = own.session.get_inputs()[0].name
    outputs = [own.session.run(None, {name: own.prepare(p).blob})[0] for p in shown_images]
    whole, post = Least(), Least()
    same = set(range(images))
    for _ in range(rounds):
        for i in range(images):
            theirs = timed(whole.package, i, package.detect, as_read[i])
            found = timed(whole.ours, i, own, [shown_images[i]])["nudenet_detections"][0]
            their_post = timed(post.package, i, package_post, outputs[i])
            own_post = timed(post.ours, i, ours_post, outputs[i][0])
            if not as_package(found) == theirs == their_post == as_package(own_post):
                same.discard(i)
    boxes = sum(len(ours_post(output[0])) for output in outputs)
    return whole, post, len(same), boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    whole, post, same, boxes = measure(args.images, args.rounds)
    print("| one thread, 512 x 512, 320n | package | ours | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for what, least in (("ms per image, decoded to scored", whole), ("ms of it after the network", post)):
        theirs, own = least.ms()
        print(f"| {what} | {theirs:.2f} | {own:.3f} | {theirs / own:.2f} |")
    print(f"\nIdentical detections: {same}/{args.images} images ({boxes} boxes), {args.rounds} rounds.")
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("nudenet", "onnxruntime", "opencv-python-headless", "numpy")
    )
    print(f"Python {platform.python_version()}, {libraries}; {platform.machine()}.")


if __name__ == "__main__":
    main()
