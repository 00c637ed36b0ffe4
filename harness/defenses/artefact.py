"""Built or published UNet tensors as files: read strictly, written with where they come from.

Files are safetensors or torch checkpoints of plain tensors. Pickled code is never executed
(``weights_only=True``, no fallback), and every key must be one of the UNet's: frameworks that ignore
unknown keys load nothing from a renamed checkpoint and say nothing.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from harness.defenses import formats
from harness.errors import UserError
from harness.store.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


def check(tensors: Mapping[str, Tensor], unet: Any, where: str) -> None:
    """Refuse tensors that do not fit the UNet's, by name and shape.

    Raises:
        UserError: naming the keys that do not, what their file looks like, and the nearest key or both shapes.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    wrong = formats.mismatch(tensors, shapes)
    if wrong is not None:
        raise UserError(f"{where}: {wrong}")
    for key, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[key]:
            raise UserError(f"{where}: {key!r} has shape {tuple(tensor.shape)}, the UNet's has {shapes[key]}")


def read(path: Path, unet: Any = None, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file, or of the files that it or a folder names, in float32 on the CPU.

    Args:
        path: ``.safetensors``, a torch checkpoint of tensors by name, an index of several, or a folder of diffusers;
            see `harness.defenses.formats`. Where ``write``'s provenance lies beside a file, the content must match it;
            another JSON file of that name, as published weights may have, says nothing.
        unet: if given, keys are renamed to the UNet's where their form is known, and all tensors must fit it.
        ignored: names of what the file may hold beside the weights; left out, whatever it is.

    Raises:
        UserError: missing, unreadable, changed since it was written, code inside, no tensors, not finite,
            or not this UNet's.
    """
    content: dict[str, Any] = {}
    for file in formats.weight_files(path):
        content |= _read_file(file)
    content = {key: value for key, value in content.items() if key not in ignored}
    if unet is not None:
        content = formats.renamed(content, unet)
    tensors = floats(content, str(path))
    if unet is not None:
        check(tensors, unet, str(path))
    return tensors


def _read_file(path: Path) -> dict[str, Any]:
    """What one file holds by name, as it was written."""
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    beside = provenance_path(path)
    if beside.exists():
        _verify(path, beside)
    return formats.unwrap(open_file(path), str(path))


def write(path: Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write tensors to ``path`` (``.safetensors``) and provenance beside it (``.json``).

    Each file appears whole or not at all; equal tensors give equal bytes.

    Args:
        path: its folder must exist.
        tensors: UNet key to tensor.
        provenance: JSON-able: mechanism, variant, concept, parameters, backbone, source...
    """
    content = safetensors.torch.save({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)})
    record = {**provenance, "tensors": len(tensors), "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(provenance_path(path), json.dumps(record, indent=2, sort_keys=True).encode())
    write_atomically(path, content)  # last: where it lies, its provenance does too


def provenance_path(path: Path) -> Path:
    """Path of the JSON file with the provenance of the tensors at ``path``."""
    return path.with_suffix(".json")


def open_file(path: Path) -> Any:
    """The content of one file of weights, whatever its structure; pickled code is never run.

    Raises:
        UserError: it cannot be read, or is no file of weights.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in formats.TORCH:
            return torch.load(path, map_location="cpu", weights_only=True)
    except EOFError:
        raise UserError(f"{path}: is cut short") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: is no checkpoint, or holds more than tensors; pickled code is never run "
            "(convert it to safetensors where you trust it)"
        ) from None
    except Exception as error:  # what torch's reader meets in a damaged file is of no fixed kind
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}: {why})") from None
    raise UserError(f"{path}: weights are .safetensors or one of {', '.join(formats.TORCH)}")


def floats(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """``content`` in float32, if it holds finite tensors by name and nothing else.

    Raises:
        UserError: naming the key of what is no such tensor.
    """
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor) and value.is_floating_point()):
            raise UserError(f"{where}: {key!r} is {type(value).__name__}, not a tensor of floating point")
        if not value.isfinite().all():
            raise UserError(f"{where}: {key!r} holds values that are not finite")
    return {key: value.detach().float() for key, value in content.items()}


def _verify(path: Path, beside: Path) -> None:
    try:
        expected = json.loads(beside.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if expected != actual:
        raise UserError(f"{path}: is not what {beside.name} says was written; remove both and build again")
