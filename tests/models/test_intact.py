"""Files of weights that cannot be whole are told by their headers; the libraries that read them are the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from harness.errors import UserError
from harness.models import intact

TENSORS = save({"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.int64)}, {"made": "by a test"})


@given(st.integers(0, len(TENSORS) - 1), st.booleans())
def test_a_safetensors_file_is_whole_where_the_library_opens_it(
    tmp_path_factory: pytest.TempPathFactory, size: int, extended: bool
) -> None:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    path.write_bytes(TENSORS + b"x" * size if extended else TENSORS[:size])
    try:
        with safe_open(path, "np"):
            opens = True
    except (SafetensorError, OSError):
        opens = False
    assert (intact.flaw(path) is None) == opens


def test_a_checkpoint_of_torch_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(100)}, path)
    assert intact.flaw(path) is None
    path.write_bytes(path.read_bytes()[:-200])
    assert intact.flaw(path) == "is cut short"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", b"", "is empty"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS"),
        ("a.ckpt", b"<!DOCTYPE html><html></html>", "web page"),
        ("a.safetensors", b"<html>no such file</html>", "web page"),
        ("config.json", b'{"a": 1', "no JSON"),
        ("tokenizer.json", b"[" + b"1," * 3_000_000, "cut short"),
        ("a.safetensors", (3).to_bytes(8, "little") + b"[1]", "no safetensors"),
    ],
)
def test_what_lies_in_a_file_s_place_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        intact.require(path, "weights")


def test_what_is_not_there_or_whole_passes(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("<html> is a word here")
    for name in ("words.txt", "gone.safetensors", "."):
        intact.require(tmp_path / name, "weights")
