"""Checkpoints are read as tensors by name; nothing that their pickles name is looked up or run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from harness.errors import UserError
from harness.models import checkpoint


def some() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(3)
    whole = torch.randn(4, 6, generator=made)
    return {
        "a.weight": whole, "a.part": whole[1:3, ::2], "a.transposed": whole.T, "scalar": torch.tensor(2.5),
        "half": torch.randn(5, generator=made).half(), "bf16": torch.randn(3, generator=made).bfloat16(),
        "ids": torch.arange(7), "empty": torch.empty(0, 3), "flags": torch.tensor([True, False]),
    }  # fmt: skip


def same(read: dict[str, torch.Tensor], written: dict[str, torch.Tensor]) -> bool:
    return read.keys() == written.keys() and all(
        read[k].dtype == v.dtype and torch.equal(read[k], v) for k, v in written.items()
    )


@pytest.mark.parametrize("inside", [None, "state_dict"])
def test_what_torch_saves_is_read_bit_for_bit(tmp_path: Path, inside: str | None) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({inside: some(), "step": 5} if inside else some(), path)
    assert same(checkpoint.tensors(path), some())
    assert checkpoint.shapes(path) == {name: tuple(value.shape) for name, value in some().items()}


def test_parameters_and_ordered_dictionaries_are_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    torch.save(OrderedDict(model.named_parameters()), tmp_path / "a.pt")
    assert same(checkpoint.tensors(tmp_path / "a.pt"), {k: v.detach() for k, v in model.named_parameters()})


def test_safetensors_are_read_by_the_same_call(tmp_path: Path) -> None:
    written = {name: value.contiguous() for name, value in some().items()}
    save_file({k: v.clone() for k, v in written.items()}, tmp_path / "a.safetensors", {"format": "pt"})
    assert same(checkpoint.tensors(tmp_path / "a.safetensors"), written)
    assert checkpoint.shapes(tmp_path / "a.safetensors") == {k: tuple(v.shape) for k, v in written.items()}


class Callback:
    """A trainer's own object, as checkpoints of Stable Diffusion carry."""

    def __init__(self) -> None:
        self.best, self.paths = 0.5, ["a", "b"]


class Evil:
    """Would run a command as it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_trainers_objects_beside_the_tensors_are_passed_over(tmp_path: Path) -> None:
    beside = {"callbacks": {Callback: Callback()}, "settings": argparse.Namespace(lr=1e-4), "seen": {1, 2}}
    torch.save({"state_dict": some(), **beside}, tmp_path / "a.ckpt")
    with pytest.raises(pickle.UnpicklingError):  # what torch itself makes of it
        torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert same(checkpoint.tensors(tmp_path / "a.ckpt"), some())


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"state_dict": some(), "evil": Evil(f"touch {trace}")}, tmp_path / "a.ckpt")
    assert same(checkpoint.tensors(tmp_path / "a.ckpt"), some())
    assert not trace.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert trace.exists()  # unpickled, it would have


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    checkpoint.tensors(tmp_path / "a.pt")["a"].zero_()
    assert (tmp_path / "a.pt").read_bytes() == before


def rewritten(source: Path, to: Path, change: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    """The archive with some entries' bytes replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w", how) as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            new.writestr(entry.filename, change.get(name, old.read(entry)))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"data/0": b"\0" * 8}, "cut short"),
        ({"data.pkl": b"no pickle"}, "opcode"),
        ({"data.pkl": pickle.dumps([1, 2])}, "holds no tensors by name"),
        ({"data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."}, "an index beyond the file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: dict[str, bytes], part: str) -> None:
    torch.save({"a": torch.ones(30)}, tmp_path / "a.ckpt")
    rewritten(tmp_path / "a.ckpt", tmp_path / "b.ckpt", change)
    with pytest.raises(UserError, match=part) as error:
        checkpoint.tensors(tmp_path / "b.ckpt")
    assert "b.ckpt" in str(error.value)


def test_compressed_tensors_and_what_is_no_archive_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(30)}, tmp_path / "a.ckpt")
    rewritten(tmp_path / "a.ckpt", tmp_path / "b.ckpt", {}, zipfile.ZIP_DEFLATED)
    (tmp_path / "c.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "d.safetensors").write_bytes(b"\xff" * 100)
    for name, part in (
        ("b.ckpt", "compressed"),
        ("c.ckpt", "BadZipFile"),
        ("d.safetensors", "header"),
        ("e.pt", "no weights at"),
    ):
        with pytest.raises(UserError, match=part):
            checkpoint.tensors(tmp_path / name)
        if name != "b.ckpt":
            with pytest.raises(UserError, match=part):
                checkpoint.shapes(tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_gives_tensors_or_one_error(tmp_path: Path, place: int, value: int) -> None:
    torch.save({"state_dict": {"a": torch.ones(9)}, "x": Callback()}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        data = bytearray(archive.read("a/data.pkl"))
    data[place % len(data)] = value
    rewritten(tmp_path / "a.ckpt", tmp_path / "b.ckpt", {"data.pkl": bytes(data)})
    try:
        read = checkpoint.tensors(tmp_path / "b.ckpt")
    except UserError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in read.values())
