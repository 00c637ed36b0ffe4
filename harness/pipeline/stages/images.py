"""Images in the columns of a table: PNG in, PNG out."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps

from harness.errors import RowError, UserError
from harness.scorers.degenerate import degenerate


def encode(image: NDArray[np.uint8]) -> bytes:
    """Lossless PNG of an array (height, width, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """An encoded image as an array (height, width, 3) uint8, upright, as a viewer shows it.

    Transparency is left out, as OpenCV leaves it out; of 16 bits of grey, the upper 8 are taken, likewise.

    Raises:
        RowError: ``undecodable``: no image, a broken or an enormous one, or one of numbers without a known range.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # convert() would cut off at 255 instead
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise RowError("undecodable", f"{image.mode}: numbers of an unknown range")
        return np.asarray(image.convert("RGB"))
    except (RowError, MemoryError):
        raise
    # A broken file makes decoders raise almost anything.
    except Exception as error:
        raise RowError("undecodable", str(error)) from error


def has_frames(data: bytes) -> bool:
    """Whether an image, which ``decode`` reads, has further frames or pages than the first."""
    with Image.open(io.BytesIO(data)) as image:
        return bool(getattr(image, "is_animated", False))


def put(entry: dict[str, Any], image: NDArray[np.uint8]) -> None:
    """Fill a row's image columns."""
    entry["image"] = encode(image)
    entry["image_sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
    entry["degenerate"] = degenerate(image)


def drawn(rows: pa.Table) -> list[bytes | None]:
    """The encoded image of every row; None for an excluded or failed one.

    Raises:
        UserError: the images were removed after they had been scored.
    """
    images: list[bytes | None] = rows["image"].to_pylist()
    hashes: list[str | None] = rows["image_sha256"].to_pylist()
    if any(data is None and known is not None for data, known in zip(images, hashes, strict=True)):
        raise UserError(
            "the images of this run were discarded; to use them anew, remove their shards "
            "(`harness store prune --stage generate`) and run the same command: they are drawn again"
        )
    return images


def one_thread(device: str) -> None:
    """On a CPU a worker has one thread: a result must not depend on how many cores are at hand."""
    if device == "cpu":
        import torch

        torch.set_num_threads(1)
