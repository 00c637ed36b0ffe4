from __future__ import annotations

import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from harness.defenses import artefact, build, locate, write_artefact
from harness.errors import UserError

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {KEY: torch.randn(128, 128), KEY.replace("to_k", "to_v"): torch.randn(128, 128)}


def test_round_trip_keeps_every_bit_and_says_where_it_comes_from(tmp_path: Path, pipe: Any, tensors: dict) -> None:
    path = tmp_path / "unet.safetensors"
    write_artefact(path, tensors, {"mechanism": "uce", "concept": "nudity"})
    back = artefact.read(path, pipe.unet)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["mechanism"] == "uce"
    assert record["tensors"] == 2
    assert len(record["sha256"]) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unet.json", "unet.safetensors"]


def test_equal_tensors_give_equal_bytes(tmp_path: Path, tensors: dict) -> None:
    write_artefact(tmp_path / "a.safetensors", tensors, {})
    write_artefact(tmp_path / "b.safetensors", dict(reversed(tensors.items())), {"other": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_content_changed_since_it_was_written_is_refused(tmp_path: Path, tensors: dict) -> None:
    path = tmp_path / "unet.safetensors"
    write_artefact(path, tensors, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"unet\.safetensors: is not what unet\.json says"):
        artefact.read(path)


@pytest.mark.parametrize("content", ['{"lr": 1e-5}', "[]", "no JSON"])
def test_a_json_file_beside_published_weights_is_no_provenance(tmp_path: Path, tensors: dict, content: str) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "esd.safetensors")
    (tmp_path / "esd.json").write_text(content)
    assert artefact.read(tmp_path / "esd.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_refused_or_read_but_never_a_traceback(tmp_path: Path, zipped: bool) -> None:
    """torch's reader answers damage with KeyError, IndexError, struct.error..."""
    path, chance = tmp_path / "x.pt", random.Random(0)
    torch.save({"a": torch.ones(4, 4), "b": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.add(type(artefact.read(path)))
            except UserError:
                outcomes.add(UserError)
    assert outcomes == {dict, UserError}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"unet": t, "text_encoder": {}},
        lambda t: {k: torch.nn.Parameter(v) for k, v in t.items()},
    ],
)
def test_published_checkpoints_load_in_each_of_their_forms(tmp_path: Path, pipe: Any, tensors: dict, wrap: Any) -> None:
    torch.save(wrap(tensors), tmp_path / "delta.pt")
    back = artefact.read(tmp_path / "delta.pt", pipe.unet)
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_a_whole_unet_in_half_precision_loads(tmp_path: Path, pipe: Any) -> None:
    torch.save({k: v.half() for k, v in pipe.unet.state_dict().items()}, tmp_path / "unet.pt")
    back = artefact.read(tmp_path / "unet.pt", pipe.unet)
    assert back.keys() == pipe.unet.state_dict().keys()
    assert {v.dtype for v in back.values()} == {torch.float32}


def test_a_key_the_unet_lacks_is_named_with_the_nearest(tmp_path: Path, pipe: Any, tensors: dict) -> None:
    wrong = KEY.replace("to_k", "to_kk")
    safetensors.torch.save_file({**tensors, wrong: torch.zeros(128, 128)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as failure:
        artefact.read(tmp_path / "x.safetensors", pipe.unet)
    assert f"key {wrong!r} is not one of the UNet's; did you mean {KEY!r}? (1 of 3 keys are not" in str(failure.value)


def test_a_prefix_that_would_match_nothing_is_refused(tmp_path: Path, pipe: Any, tensors: dict) -> None:
    torch.save({f"student.{k}": v for k, v in tensors.items()}, tmp_path / "student.pt")
    with pytest.raises(UserError, match=r"2 of 2 keys are not.*it looks like no form known here"):
        artefact.read(tmp_path / "student.pt", pipe.unet)


def test_another_shape_is_named_with_both(tmp_path: Path, pipe: Any) -> None:
    torch.save({KEY: torch.zeros(1280, 768)}, tmp_path / "sd14.pt")
    with pytest.raises(UserError, match=r"has shape \(1280, 768\), the UNet's has \(128, 128\)"):
        artefact.read(tmp_path / "sd14.pt", pipe.unet)


class Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(__file__).with_name("executed"),))


def test_pickled_code_is_never_run(tmp_path: Path, tensors: dict) -> None:
    torch.save({**tensors, "payload": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UserError, match=name):
            artefact.read(tmp_path / name)
    assert not Path(__file__).with_name("executed").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.safetensors", b"\x10\x00\x00"),
        ("cut.pt", b"PK\x03\x04"),
        ("empty.pt", b""),
        ("empty.safetensors", b""),
        ("notes.txt", b"hello"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        artefact.read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors"),
        ([torch.zeros(1)], "holds no tensors"),
        ({KEY: 3}, "is int, not a tensor"),
        ({KEY: torch.zeros(2, dtype=torch.int64)}, "not a tensor of floating point"),
        ({KEY: torch.full((128, 128), float("nan"))}, "not finite"),
    ],
)
def test_content_that_cannot_be_weights_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        artefact.read(tmp_path / "x.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights at .*gone\.pt"):
        artefact.read(tmp_path / "gone.pt")


def test_published_weights_take_the_place_of_building(tmp_path: Path, pipe: Any, tensors: dict) -> None:
    torch.save(tensors, tmp_path / "published.pt")
    built = build("uce", pipe, {"erase": ["star"], "weights": str(tmp_path / "published.pt")})
    assert all(torch.equal(built[k], tensors[k]) for k in tensors)
    assert built.keys() == tensors.keys()


def test_published_weights_of_another_model_are_refused_when_building(tmp_path: Path, pipe: Any) -> None:
    torch.save({KEY: torch.zeros(1280, 768)}, tmp_path / "sd14.pt")
    with pytest.raises(UserError, match=r"has shape \(1280, 768\)"):
        build("rece", pipe, {"erase": ["star"], "weights": str(tmp_path / "sd14.pt")})


@pytest.mark.parametrize(
    "weights", ["hub:owner/repo/file.pt", "hub:owner/repo@main/file.pt", "hub:repo@" + "0" * 40 + "/file.pt"]
)
def test_a_hub_id_without_its_commit_is_refused(weights: str) -> None:
    with pytest.raises(UserError, match="hub:OWNER/REPO@COMMIT/PATH"):
        locate(weights)


def test_hub_weights_that_are_not_here_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    with pytest.raises(UserError, match=f"hf download owner/repo sub/file.pt --revision {commit}"):
        locate(f"hub:owner/repo@{commit}/sub/file.pt")
