"""Small ONNX networks, written as protocol buffers by hand, so that no test needs the package onnx."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLOAT, INT64 = 1, 7  # TensorProto.DataType
OPSET = 13


def number(value: int) -> bytes:
    """A base-128 number."""
    found = bytearray()
    while value >= 128:
        found.append(value % 128 + 128)
        value //= 128
    return bytes([*found, value])


def field(tag: int, value: int | str | bytes) -> bytes:
    """One field of a message: a number, or anything with a length."""
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(tag << 3 | 2) + number(len(data)) + data


def tensor(name: str, array: np.ndarray) -> bytes:
    """TensorProto."""
    kind = INT64 if array.dtype == np.int64 else FLOAT
    shape = b"".join(field(1, size) for size in array.shape)
    return shape + field(2, kind) + field(8, name) + field(9, array.tobytes())


def value(name: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto of floats; a size that is a name varies."""
    sizes = b"".join(field(1, field(2 if isinstance(size, str) else 1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, sizes)))


def attribute(name: str, given: int | Sequence[int]) -> bytes:
    """AttributeProto of one number or several."""
    if isinstance(given, int):
        return field(1, name) + field(3, given) + field(20, 2)
    return field(1, name) + b"".join(field(8, part) for part in given) + field(20, 7)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """NodeProto."""
    given = b"".join(field(5, attribute(name, what)) for name, what in attributes.items())
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind) + given


def network(
    nodes: Sequence[bytes], tensors: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]
) -> bytes:
    """ModelProto."""
    parts = ((1, nodes), (5, tensors), (11, inputs), (12, outputs))
    graph = field(2, "g") + b"".join(field(tag, part) for tag, found in parts for part in found)
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, OPSET))


def classifier(weight: np.ndarray, bias: np.ndarray, shape: Sequence[int | str] = ("n", 256, 256, 3)) -> bytes:
    """softmax(mean over places @ weight + bias): of NudeNet v2's input and output where weight is (3, 2)."""
    return network(
        [
            # One after the other: summed at once, 65,536 float32 lose four digits.
            node("ReduceMean", ["input_1"], "columns", axes=[1], keepdims=0),
            node("ReduceMean", ["columns"], "means", axes=[1], keepdims=0),
            node("Gemm", ["means", "weight", "bias"], "logits"),
            node("Softmax", ["logits"], "dense_3", axis=1),
        ],
        [tensor("weight", weight.astype(np.float32)), tensor("bias", bias.astype(np.float32))],
        [value("input_1", shape)],
        [value("dense_3", ["n", weight.shape[1]])],
    )
