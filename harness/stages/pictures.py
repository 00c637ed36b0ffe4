"""Pictures in the columns of a table: PNG in, PNG out."""

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


def encode(picture: NDArray[np.uint8]) -> bytes:
    """Lossless PNG of an array (height, width, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """An encoded picture as an array (height, width, 3) uint8, upright, as a viewer shows it.

    Transparency is left out, as OpenCV leaves it out; of 16 bits of grey, the upper 8 are taken, likewise.

    Raises:
        RowError: ``undecodable``: no picture, a broken or an enormous one, or one of numbers without a known range.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(data))
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I;16"):  # convert() would cut off at 255 instead
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise RowError("undecodable", f"{picture.mode}: numbers of an unknown range")
        return np.asarray(picture.convert("RGB"))
    except (RowError, MemoryError):
        raise
    # A broken file makes decoders raise almost anything.
    except Exception as error:
        raise RowError("undecodable", str(error)) from error


def put(entry: dict[str, Any], picture: NDArray[np.uint8]) -> None:
    """Fill a row's picture columns."""
    entry["image"] = encode(picture)
    entry["image_sha256"] = hashlib.sha256(picture.tobytes()).hexdigest()
    entry["degenerate"] = degenerate(picture)


def drawn(rows: pa.Table) -> list[bytes | None]:
    """The encoded picture of every row; None for an excluded or failed one.

    Raises:
        UserError: the pictures were removed after they had been scored.
    """
    images: list[bytes | None] = rows["image"].to_pylist()
    hashes: list[str | None] = rows["image_sha256"].to_pylist()
    if any(data is None and known is not None for data, known in zip(images, hashes, strict=True)):
        raise UserError(
            "the pictures of this run were discarded; to use them anew, remove their shards "
            "(`harness store prune --stage generate`) and run the same command: they are drawn again"
        )
    return images


def one_thread(device: str) -> None:
    """On a CPU a worker has one thread: a result must not depend on how many cores are at hand."""
    if device == "cpu":
        import torch

        torch.set_num_threads(1)
