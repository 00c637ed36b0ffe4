"""Encoded images as arrays: OpenCV is the oracle, whose reading NudeNet's package judges by."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.errors import RowError
from harness.pipeline.stages import images

HEIGHT, WIDTH = 5, 7


def drawn(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(channels).integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8)


def file(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **how)
    return data.getvalue()


def opencv(data: bytes) -> NDArray[Any]:
    return np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


@pytest.mark.parametrize(
    "data",
    [
        file(Image.fromarray(drawn())),
        file(Image.fromarray(drawn(4))),
        file(Image.fromarray(drawn(2), "LA")),
        file(Image.fromarray(drawn()[..., 0])),
        file(Image.fromarray(drawn()).convert("P"), transparency=0),
        file(Image.fromarray(drawn()).convert("1")),
        file(Image.fromarray(drawn()), "BMP"),
        file(Image.fromarray(drawn(4)), "WEBP", lossless=True),
    ],
    ids=["rgb", "rgba", "grey-alpha", "grey", "palette", "bits", "bmp", "webp-alpha"],
)
def test_an_image_is_read_as_opencv_reads_it(data: bytes) -> None:
    assert np.array_equal(images.decode(data), opencv(data))


def test_sixteen_bits_of_grey_keep_their_upper_half() -> None:
    grey = np.random.default_rng(0).integers(0, 1 << 16, (HEIGHT, WIDTH), np.uint16)
    data = cv2.imencode(".png", grey)[1].tobytes()
    assert np.array_equal(images.decode(data), opencv(data))
    assert np.array_equal(images.decode(data)[..., 0], grey >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_photograph_stands_upright(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    flat = np.kron(drawn(), np.ones((16, 16, 1), np.uint8))  # blocks, which JPEG keeps
    data = file(Image.fromarray(flat), form, exif=exif)
    found = images.decode(data)
    assert found.shape == ((WIDTH * 16, HEIGHT * 16, 3) if orientation > 4 else flat.shape)
    assert np.array_equal(found, opencv(data))


def enormous() -> bytes:
    """A bitmap whose head promises 40,000 x 40,000 pixels."""
    head = struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + head


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        file(Image.fromarray(np.kron(drawn(), np.ones((16, 16, 1), np.uint8))))[:-40],
        enormous(),
        file(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        file(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
    ],
    ids=["empty", "text", "cut off", "enormous", "floats", "32 bits"],
)
def test_what_is_no_image_is_its_row_s_error(data: bytes) -> None:
    with pytest.raises(RowError) as raised:
        images.decode(data)
    assert raised.value.code == "undecodable"


def test_encoding_loses_nothing() -> None:
    assert np.array_equal(images.decode(images.encode(drawn())), drawn())
