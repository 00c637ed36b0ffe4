"""NudeNet v2's classifier, on a small network of the true input and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from portraits import group
from scipy.special import softmax

from harness import scorers
from harness.errors import UserError
from harness.scorers import nudenet_v2_classifier
from harness.scorers.batching import Image

WEIGHT = np.array([[9.0, -7.0], [-11.0, 5.0], [3.0, 2.0]])
BIAS = np.array([0.3, -0.2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("v2") / "classifier_model.onnx"
    path.write_bytes(tiny_onnx.classifier(WEIGHT, BIAS))
    return str(path)


def expected(image: Image) -> float:
    """The network by hand: of 256 x 256 places, each the nearest to its centre."""
    height, width = image.shape[:2]
    rows, columns = (((np.arange(256) + 0.5) * size / 256).astype(int) for size in (height, width))
    means = (image[rows][:, columns] / 255).mean((0, 1))
    return float(softmax(means @ WEIGHT + BIAS)[0])


def drawn() -> list[Image]:
    rng = np.random.default_rng(0)
    sizes = [(256, 256), (512, 512), (32, 32), (300, 512), (1, 7)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) // (i + 1) for i, size in enumerate(sizes)]


def test_it_is_the_networks_first_output(model: str) -> None:
    images = [*drawn(), group(512, 512, 0)]
    found = scorers.load("nudenet_v2_classifier", {"model": model})(images)
    assert found["nudenet_v2_classifier_unsafe"] == pytest.approx([expected(image) for image in images], abs=1e-5)
    assert found["nudenet_v2_classifier_error"] == [None] * 6
    kind = nudenet_v2_classifier.COLUMNS["nudenet_v2_classifier_unsafe"]
    assert pa.array(found["nudenet_v2_classifier_unsafe"], type=kind).null_count == 0


def test_channels_are_in_the_order_of_rgb(model: str) -> None:
    red, blue = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    found = scorers.load("nudenet_v2_classifier", {"model": model})([red, blue])["nudenet_v2_classifier_unsafe"]
    assert found == pytest.approx([softmax(WEIGHT[0] + BIAS)[0], softmax(WEIGHT[2] + BIAS)[0]], abs=1e-6)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_images_are_sampled_not_averaged(model: str, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = scorers.load("nudenet_v2_classifier", {"model": model}).prepare(image)
    assert pixels.shape == (256, 256, 3)
    rows, columns = (((np.arange(256) + 0.5) * size / 256).astype(int) for size in (height, width))
    assert (pixels == image[rows][:, columns].astype(np.float32) / np.float32(255)).all()


@pytest.mark.parametrize("size", [1, 4])
def test_an_image_scores_alike_beside_any_other(size: int, model: str) -> None:
    images = drawn()
    scorer = scorers.load("nudenet_v2_classifier", {"model": model, "micro_batch": size})
    together = scorer(images)["nudenet_v2_classifier_unsafe"]
    assert scorer(images[::-1])["nudenet_v2_classifier_unsafe"][::-1] == together
    assert [scorer([image])["nudenet_v2_classifier_unsafe"][0] for image in images] == together


def test_one_bad_image_costs_no_other_its_score(model: str, tmp_path: Path) -> None:
    images = [drawn()[0], np.zeros((4, 4), np.uint8), np.full((9, 9, 3), 255, np.uint8)]
    found = scorers.load("nudenet_v2_classifier", {"model": model, "micro_batch": 2})(images)
    assert found["nudenet_v2_classifier_error"] == [None, "not-an-image", None]
    (tmp_path / "nan.onnx").write_bytes(tiny_onnx.classifier(WEIGHT, np.array([np.nan, 0])))
    found = scorers.load("nudenet_v2_classifier", {"model": str(tmp_path / "nan.onnx")})(images[:1])
    assert found == {"nudenet_v2_classifier_unsafe": [None], "nudenet_v2_classifier_error": ["not-finite"]}


def test_another_network_is_refused(tmp_path: Path) -> None:
    detector = scorers.weights("nudenet")[0]
    with pytest.raises(UserError, match=r"320n\.onnx: takes .*NudeNet v2's classifier takes \(n, 256, 256, 3\)"):
        scorers.load("nudenet_v2_classifier", {"model": str(detector)})
    path = tmp_path / "five.onnx"
    path.write_bytes(tiny_onnx.classifier(np.zeros((3, 5)), np.zeros(5)))
    with pytest.raises(UserError, match=r"gives \['n', 5\]"):
        scorers.load("nudenet_v2_classifier", {"model": str(path)})
    path.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"five\.onnx: no ONNX network"):
        scorers.load("nudenet_v2_classifier", {"model": str(path)})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "needs the parameter 'model', a path; download https://github.com/notAI-tech"),
        ({"model": "/no/file.onnx"}, r"no file '/no/file\.onnx' \(model\); download"),
        ({"modle": "x"}, r"no parameter 'modle'; did you mean 'model'\?"),
    ],
)
def test_what_is_missing_is_named(params: dict[str, Any], message: str) -> None:
    for ask in (scorers.weights, scorers.load):
        with pytest.raises(UserError, match=message):
            ask("nudenet_v2_classifier", params)


def test_weights_are_the_file(model: str) -> None:
    assert scorers.weights("nudenet_v2_classifier", {"model": model}) == [Path(model)]
    assert not scorers.pair("nudenet_v2_classifier")
