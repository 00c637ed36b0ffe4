"""NudeNet against its own package: the same network, the same detections, bit for bit."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from nudenet import NudeDetector
from nudenet.nudenet import _postprocess
from numpy.typing import NDArray
from PIL import Image
from portraits import group, portrait

from harness import scorers
from harness.errors import UserError
from harness.scorers import nudenet

ImageArray = NDArray[np.uint8]

SIZES = [(512, 512), (320, 320), (32, 32), (640, 480), (200, 700), (1, 1), (333, 17), (64, 65)]  # width, height


def drawn(width: int, height: int, seed: int) -> ImageArray:
    return (group if min(width, height) > 50 else portrait)(width, height, seed)


def as_package(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"class": d["label"], "score": d["score"], "box": [d[side] for side in "xywh"]} for d in found]


def tensor(seed: int, anchors: int = 2100, resolution: int = 320, crowd: float = 0.02) -> NDArray[np.float32]:
    """A random network output (22, anchors) in which a share ``crowd`` of the anchors scores high."""
    rng = np.random.default_rng(seed)
    output = np.empty((22, anchors), dtype=np.float32)
    output[:2] = rng.uniform(-20, resolution + 20, (2, anchors))
    output[2:4] = rng.uniform(0, resolution / 2, (2, anchors))
    output[4:] = rng.uniform(0, 0.21, (18, anchors))
    high = rng.random(anchors) < crowd
    output[4:, high] = rng.uniform(0, 1, (18, int(high.sum())))
    return output


def package_postprocess(output: NDArray[np.float32], width: int, height: int, resolution: int) -> list[dict[str, Any]]:
    side = max(width, height)
    found: list[dict[str, Any]] = _postprocess(
        [output[None]], side - width, side - height, side / width, side / height, width, height, resolution, resolution
    )
    return found


@pytest.fixture(scope="module")
def package() -> NudeDetector:
    return NudeDetector()


@pytest.fixture(scope="module")
def ours() -> nudenet.NudeNet:
    return nudenet.load({})


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_detections_of_a_file_are_the_packages(
    package: NudeDetector, ours: nudenet.NudeNet, size: tuple[int, int], tmp_path: Path
) -> None:
    for seed in range(3):
        image = drawn(*size, seed)
        path = tmp_path / f"{seed}.png"
        Image.fromarray(image).save(path)
        assert as_package(ours([image])["nudenet_detections"][0]) == package.detect(str(path))


def test_the_drawn_images_wake_the_network(ours: nudenet.NudeNet) -> None:
    found = ours([drawn(512, 512, seed) for seed in range(3)])["nudenet_detections"]
    assert sum(len(boxes) for boxes in found) >= 5


def test_detections_of_a_grey_file_are_the_packages(
    package: NudeDetector, ours: nudenet.NudeNet, tmp_path: Path
) -> None:
    grey = Image.fromarray(drawn(300, 400, 5)).convert("L")
    grey.save(tmp_path / "grey.png")
    image = np.asarray(Image.open(tmp_path / "grey.png").convert("RGB"))
    assert as_package(ours([image])["nudenet_detections"][0]) == package.detect(str(tmp_path / "grey.png"))


def test_detections_of_encoded_bytes_are_the_packages(package: NudeDetector, ours: nudenet.NudeNet) -> None:
    file = io.BytesIO()
    image = drawn(512, 400, 6)
    Image.fromarray(image).save(file, "PNG")
    assert as_package(ours([image])["nudenet_detections"][0]) == package.detect(file.getvalue())


def test_rgb_order_is_the_packages_for_an_array(package: NudeDetector) -> None:
    rgb = nudenet.load({"channel_order": "rgb"})
    images = [drawn(512, 512, seed) for seed in range(3)]
    assert [as_package(d) for d in rgb(images)["nudenet_detections"]] == [package.detect(p) for p in images]


def test_channel_orders_differ_by_a_swap_of_red_and_blue(ours: nudenet.NudeNet) -> None:
    image = drawn(100, 80, 1)
    rgb = nudenet.load({"channel_order": "rgb"})
    assert np.array_equal(ours.prepare(image).blob, rgb.prepare(image).blob[:, ::-1])
    assert np.array_equal(ours.prepare(image).blob, rgb.prepare(np.ascontiguousarray(image[..., ::-1])).blob)


def test_padding_is_black_at_the_right_and_bottom(ours: nudenet.NudeNet) -> None:
    white = np.full((160, 320, 3), 255, dtype=np.uint8)
    blob = ours.prepare(white).blob[0]
    assert (blob[:, :160] == 1).all()
    assert (blob[:, 160:] == 0).all()
    blob = ours.prepare(np.ascontiguousarray(white.swapaxes(0, 1))).blob[0]
    assert (blob[:, :, :160] == 1).all()
    assert (blob[:, :, 160:] == 0).all()


@pytest.mark.parametrize("crowd", [0.0, 0.003, 0.05])
def test_post_processing_of_random_outputs_is_the_packages(crowd: float) -> None:
    for seed in range(12):
        output = tensor(seed, crowd=crowd)
        for width, height in ((512, 512), (640, 333), (17, 400)):
            theirs = package_postprocess(output, width, height, 320)
            assert as_package(nudenet.detections(output, width, height, 320)) == theirs


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.sampled_from([320, 640]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_post_processing_agrees_whatever_the_size(
    seed: int, width: int, height: int, resolution: int, crowd: float
) -> None:
    output = tensor(seed, 40, resolution, crowd)
    assert as_package(nudenet.detections(output, width, height, resolution)) == package_postprocess(
        output, width, height, resolution
    )


def test_post_processing_agrees_on_floors_and_ties() -> None:
    one = np.float32(1)
    floors = [np.nextafter(np.float32(floor), towards) for floor in (0.2, 0.25) for towards in (0 * one, one)]
    for score in (*floors, 0.2, 0.23, 0.25, 0.45):
        output = np.zeros((22, 3), dtype=np.float32)
        output[:4] = [[50, 50, 200], [50, 51, 200], [40, 40, 30], [40, 40, 30]]
        output[[6, 9], :] = score  # two labels tie, and so do two overlapping anchors
        found = nudenet.detections(output, 320, 320, 320)
        assert as_package(found) == package_postprocess(output, 320, 320, 320)


def test_best_scores_are_those_that_suppression_hides() -> None:
    output = np.zeros((22, 2), dtype=np.float32)
    output[:4] = [[100, 102], [100, 102], [80, 80], [80, 80]]
    belly, breast = nudenet.LABELS.index("BELLY_EXPOSED"), nudenet.LABELS.index("FEMALE_BREAST_EXPOSED")
    output[4 + belly, 0], output[4 + breast, 1] = 0.9, 0.8
    assert [d["label"] for d in nudenet.detections(output, 320, 320, 320)] == ["BELLY_EXPOSED"]
    best = nudenet.best(output)
    assert best["nudenet_female_breast_exposed"] == np.float32(0.8)
    assert best["nudenet_belly_exposed"] == np.float32(0.9)
    assert best["nudenet_face_male"] == 0.0


def test_detected_scores_are_the_best_of_each_labels_detections() -> None:
    found = [
        {"label": "FACE_MALE", "score": 0.5, "x": 0, "y": 0, "w": 1, "h": 1},
        {"label": "FACE_MALE", "score": 0.75, "x": 9, "y": 0, "w": 1, "h": 1},
        {"label": "BELLY_EXPOSED", "score": 0.375, "x": 9, "y": 9, "w": 1, "h": 1},
    ]
    scores = nudenet.detected(found)
    assert len(scores) == len(nudenet.LABELS)
    assert {name: score for name, score in scores.items() if score} == {
        "nudenet_detected_face_male": 0.75,
        "nudenet_detected_belly_exposed": 0.375,
    }


def test_best_scores_are_the_columns_maxima(ours: nudenet.NudeNet) -> None:
    images = [drawn(512, 512, seed) for seed in range(2)]
    found = ours(images)
    name = ours.session.get_inputs()[0].name
    for i, image in enumerate(images):
        raw = ours.session.run(None, {name: ours.prepare(image).blob})[0][0]
        for j, label in enumerate(nudenet.LABELS):
            assert found[f"nudenet_{label.lower()}"][i] == raw[4 + j].max()
        for detection in found["nudenet_detections"][i]:
            label = detection["label"].lower()
            assert detection["score"] <= found[f"nudenet_detected_{label}"][i] <= found[f"nudenet_{label}"][i]


def test_an_image_scores_alike_in_any_micro_batch_beside_any_other(ours: nudenet.NudeNet) -> None:
    images = [drawn(*SIZES[i % 4], i) for i in range(5)]
    alone = ours(images)
    for size in (2, 4):
        batched = nudenet.load({"micro_batch": size})
        together, reversed_ = batched(images), batched(images[::-1])
        for name in scorers.columns("nudenet"):
            assert together[name] == reversed_[name][::-1]
            assert together[name] == alone[name]


def test_no_images_give_empty_columns(ours: nudenet.NudeNet) -> None:
    assert set(ours([])) == {*nudenet.COLUMNS, "nudenet_error"}
    assert all(column == [] for column in ours([]).values())


def test_columns_hold_their_arrow_types(ours: nudenet.NudeNet) -> None:
    bad = np.zeros((4, 4), dtype=np.uint8)
    found = ours([drawn(128, 128, 1), bad])
    for name, kind in nudenet.COLUMNS.items():
        assert pa.array(found[name], type=kind).null_count == 1, name
    assert found["nudenet_error"] == [None, "not-an-image"]


def test_one_bad_image_costs_no_other_its_scores(ours: nudenet.NudeNet) -> None:
    good = drawn(128, 128, 1)
    batched = nudenet.load({"micro_batch": 4})
    bad = [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)]
    for scorer in (ours, batched):
        found = scorer([bad[0], good, bad[1], bad[2], good])
        assert found["nudenet_error"] == ["not-an-image", None, "not-an-image", "not-an-image", None]
        assert found["nudenet_face_male"][1] == found["nudenet_face_male"][4] == scorer([good])["nudenet_face_male"][0]


def test_labels_are_the_packages_in_its_order() -> None:
    output = np.zeros((22, 18), dtype=np.float32)
    output[0] = np.arange(18) * 17 + 5  # boxes side by side, so that none suppresses another
    output[1], output[2:4] = 20, 10
    output[4:] = np.eye(18, dtype=np.float32) * np.linspace(0.95, 0.5, 18, dtype=np.float32)
    theirs = [d["class"] for d in package_postprocess(output, 320, 320, 320)]
    assert tuple(theirs) == nudenet.LABELS


def test_weights_are_the_packages_file() -> None:
    (path,) = nudenet.weights({})
    assert path.parts[-2:] == ("nudenet", "320n.onnx")


def test_another_network_is_taken_by_path_at_its_own_size(tmp_path: Path) -> None:
    """As 640m is: the package, too, gets a path and a size."""
    path = tmp_path / "another.onnx"
    shutil.copy(nudenet.weights({})[0], path)
    ours = nudenet.load({"model": str(path), "resolution": 640})
    package = NudeDetector(model_path=str(path), inference_resolution=640)
    images = [drawn(512, 512, 0), drawn(640, 480, 1)]
    found = ours(images)["nudenet_detections"]
    for image, boxes in zip(images, found, strict=True):
        assert as_package(boxes) == package.detect(np.ascontiguousarray(image[..., ::-1]))
    assert found != nudenet.load({})(images)["nudenet_detections"]
    assert sum(map(len, found)) > 0
    assert nudenet.weights({"model": str(path)}) == [path]


def detector(inputs: list[int | str], labels: int) -> bytes:
    """A network that gives a detector's output: one anchor, its numbers those of the image's channels."""
    rows = np.zeros((3, 4 + labels), np.float32)
    return tiny_onnx.network(
        [
            tiny_onnx.node("ReduceMean", ["images"], "means", axes=[2, 3], keepdims=0),
            tiny_onnx.node("MatMul", ["means", "rows"], "flat"),
            tiny_onnx.node("Unsqueeze", ["flat", "last"], "output0"),
        ],
        [tiny_onnx.tensor("rows", rows), tiny_onnx.tensor("last", np.array([2]))],
        [tiny_onnx.value("images", inputs)],
        [tiny_onnx.value("output0", [inputs[0], 4 + labels, 1])],
    )


@pytest.mark.parametrize(
    ("inputs", "labels", "params", "message"),
    [
        (["batch", 3, 640, 640], 18, {}, r"takes \['batch', 3, 640, 640\], not \[1, 3, 320, 320\]"),
        ([1, 3, 320, 320], 18, {"micro_batch": 4}, r"not \[4, 3, 320, 320\]"),
        (["batch", 3, "height", "width"], 16, {}, r"gives \['batch', 20, 1\], not boxes and scores of 18 labels"),
        ([1, 3, 640, 640], 18, {"resolution": 640}, None),
    ],
)
def test_a_network_of_another_size_or_other_labels_is_refused(
    inputs: list[int | str], labels: int, params: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(detector(inputs, labels))
    if message is None:
        assert nudenet.load({"model": str(path), **params})([drawn(64, 64, 0)])["nudenet_detections"] == [[]]
    else:
        with pytest.raises(UserError, match=message):
            nudenet.load({"model": str(path), **params})
    path.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"other\.onnx: no ONNX network"):
        nudenet.load({"model": str(path)})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"chanel_order": "rgb"}, "no parameter 'chanel_order'; did you mean 'channel_order'?"),
        ({"channel_order": "bgr"}, "unknown channel_order 'bgr'"),
        ({"model": "/nowhere/640m.onnx"}, "no file '/nowhere/640m.onnx'"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        nudenet.load(params)
