"""Read the tensors of a weights file by name, and nothing else: ``.safetensors``, and torch's ``.ckpt`` or ``.pt``.

A torch checkpoint is a zip archive: a pickle that says how its tensors are to be made, and their bytes beside it.
The pickle's recipe for a tensor is read as data. Whatever else it names (a trainer's callbacks and settings, which
checkpoints of Stable Diffusion carry) becomes an empty stand-in: no function or class of the file is looked up or run.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_PICKLE = 64 << 20  # bytes; that of Stable Diffusion has some 0.3 million
_LARGEST_HEADER = 100 << 20  # of a safetensors file, as its own reader has it
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # operations of a pickle that number what it holds
_CONTAINERS = ("state_dict", "model")  # a checkpoint's tensors may lie one level down
_DTYPES = {  # torch's names of storages, and of their elements
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


class _Storage(NamedTuple):
    """The bytes of one or several tensors, as an archive names them."""

    dtype: str
    key: str
    elements: int


class _Recipe(NamedTuple):
    """How a tensor lies in its storage: offset, shape and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor in a file; imports no torch and reads no tensor.

    Raises:
        UserError: no such file, or none of these formats.
    """
    try:
        if path.suffix == ".safetensors":
            return {name: tuple(about["shape"]) for name, about in _header(path).items() if name != "__metadata__"}
        with zipfile.ZipFile(path) as archive:
            return {name: recipe.shape for name, recipe in _recipes(archive).items()}
    except Exception as error:  # what a damaged file makes its readers raise is of no fixed kind
        raise _unreadable(path, error) from None


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by name, on the CPU, as it was written.

    Raises:
        UserError: no such file, or none of these formats.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writing to a tensor leaves the file alone
            recipes = _recipes(archive)
            storages = _storages(archive, recipes.values(), content)
            return {
                name: storages[one.storage.key].as_strided(one.shape, one.strides, one.offset)
                for name, one in recipes.items()
            }
    except Exception as error:
        raise _unreadable(path, error) from None


def refuse_far_memo(data: bytes) -> None:
    """Raises: UnpicklingError if a pickle numbers a value beyond its own length: Python would make room for it."""
    if any(code.name in _MEMO and (argument or 0) > len(data) for code, argument, _ in pickletools.genops(data)):
        raise pickle.UnpicklingError("an index beyond the file")


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LARGEST_HEADER, path.stat().st_size):
            raise ValueError("its header is longer than such a file's")
        header: dict[str, Any] = json.loads(file.read(length))
    return header


def _recipes(archive: zipfile.ZipFile) -> dict[str, _Recipe]:
    """The recipes of a checkpoint's tensors, of the dictionary that holds them."""
    entry = _entries(archive)["data.pkl"]
    if entry.file_size > _LARGEST_PICKLE:
        raise ValueError(f"{entry.file_size} bytes are too many for a list of tensors")
    data = archive.read(entry)
    refuse_far_memo(data)
    content = _Reader(io.BytesIO(data)).load()
    inside = [content[k] for k in _CONTAINERS if isinstance(content, dict) and isinstance(content.get(k), dict)]
    held = inside[0] if inside else content
    if not isinstance(held, dict):
        raise TypeError("holds no tensors by name")
    return {str(name): value for name, value in held.items() if isinstance(value, _Recipe)}


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Each entry by its place below the archive's one folder."""
    return {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}


def _storages(archive: zipfile.ZipFile, recipes: Iterable[_Recipe], content: mmap.mmap) -> dict[str, Tensor]:
    """Every storage that the recipes name, as it lies in the file: its bytes are read when they are used."""
    import torch

    entries = _entries(archive)
    by_key: dict[str, Tensor] = {}
    for storage in {recipe.storage for recipe in recipes}:
        entry, dtype = entries[f"data/{storage.key}"], getattr(torch, storage.dtype)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its tensors are compressed")
        if not 0 <= storage.elements * dtype.itemsize <= entry.file_size:
            raise ValueError(f"storage {storage.key} is cut short")
        # Before the bytes stand 30 of a header, and name and extra field, whose lengths stand in its bytes 26 to 29.
        header = entry.header_offset
        start = header + 30 + sum(int.from_bytes(content[header + i : header + i + 2], "little") for i in (26, 28))
        size = storage.elements
        empty = torch.empty(0, dtype=dtype)
        by_key[storage.key] = torch.frombuffer(content, dtype=dtype, count=size, offset=start) if size else empty
    return by_key


class _Inert:
    """Stands for whatever a pickle names that is no tensor; takes what it is given and does nothing."""

    def __new__(cls, *_given: Any, **_named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_given: Any, **_named: Any) -> None: ...

    def __call__(self, *_given: Any, **_named: Any) -> _Inert:
        return self

    def __setstate__(self, _state: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def append(self, _value: Any) -> None: ...

    def extend(self, _values: Any) -> None: ...


class _Reader(pickle.Unpickler):
    """Reads a checkpoint's pickle without looking up anything that it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return lambda *given: _rebuilt(*given)  # of this call alone, should the file set attributes on it
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda value, *_further: value  # a parameter is the tensor that it holds
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        return type("Inert", (_Inert,), {})  # of this name alone

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _device, elements = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError("a storage of an unknown type")
        return _Storage(dtype, str(key), int(elements))


def _rebuilt(storage: Any, offset: int, shape: Any, strides: Any, *_further: Any) -> Any:
    """In place of torch's function of that name: what it would make, not made."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Recipe(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _unreadable(path: Path, error: Exception) -> UserError:
    if not path.exists():
        return UserError(f"no weights at {path}")
    why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return UserError(f"{path}: cannot be read as weights ({why}); nothing in it was run")
