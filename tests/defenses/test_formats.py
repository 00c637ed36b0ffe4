"""Published UNet weights in each of their forms, on Stable Diffusion 1.4's true keys and shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from harness.defenses import artefact, files, formats, locate
from harness.errors import UserError

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def sd14() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


@pytest.fixture(scope="module")
def names(sd14: UNet2DConditionModel) -> dict[str, str]:
    return formats.compvis_names(sd14)


def small(unet: Any) -> dict[str, torch.Tensor]:
    """Another value for every tensor of a UNet, by its key."""
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) for k, v in unet.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_sd14_has_its_published_key_set(sd14: UNet2DConditionModel, names: dict[str, str]) -> None:
    state = sd14.state_dict()
    assert len(state) == 686
    assert sum(v.numel() for v in state.values()) == 859_520_964
    assert len(set(names.values())) == 686
    assert {"input_blocks.0.0.weight", "middle_block.1.proj_in.weight", "output_blocks.11.1.proj_out.bias"} <= set(
        names.values()
    )


def test_compvis_names_are_those_that_diffusers_converts(sd14: UNet2DConditionModel, names: dict[str, str]) -> None:
    """diffusers' own converter, which knows nothing of ours, takes every tensor back to where it came from."""
    marked = {PREFIX + names[key]: torch.tensor(float(i)) for i, key in enumerate(sd14.state_dict())}
    converted = convert_ldm_unet_checkpoint(dict(marked), {**sd14.config, "class_embed_type": None})
    assert {k: float(v) for k, v in converted.items()} == {k: float(i) for i, k in enumerate(sd14.state_dict())}


@pytest.mark.parametrize("part", [".attn2.to_k.", "down_blocks.1.", "mid_block.", ""])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_compvis_checkpoints_whole_or_in_part_are_renamed(
    sd14: UNet2DConditionModel, names: dict[str, str], part: str, prefix: str
) -> None:
    chosen = {key: tensor for key, tensor in sd14.state_dict().items() if part in key}
    content = {prefix + names[key]: tensor for key, tensor in chosen.items()}
    renamed = formats.renamed(content, sd14)
    assert renamed.keys() == chosen.keys()
    assert all(renamed[k] is chosen[k] for k in chosen)


@pytest.mark.parametrize("prefix", ["unet.", "module.", "module.unet.", "_orig_mod."])
def test_a_wrappers_prefix_is_left_off(sd14: UNet2DConditionModel, prefix: str) -> None:
    state = sd14.state_dict()
    assert formats.renamed({prefix + k: v for k, v in state.items()}, sd14).keys() == state.keys()


def test_a_whole_compvis_checkpoint_gives_the_trained_copy_and_nothing_else(tmp_path: Path, pipe: Any) -> None:
    wanted, names = small(pipe.unet), formats.compvis_names(pipe.unet)
    content = {PREFIX + names[k]: v for k, v in wanted.items()}
    content |= {"model_ema." + names[k].replace(".", ""): torch.zeros_like(v) for k, v in wanted.items()}
    content |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(3), "betas": torch.zeros(1000)}
    content |= {"cond_stage_model.transformer.text_model.x": torch.zeros(2), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": content, "global_step": 5, "epoch": 1}, tmp_path / "salun.ckpt")
    assert same(artefact.read(tmp_path / "salun.ckpt", pipe.unet), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["index", "unet folder", "pipeline folder", "one file in a folder", "torch shards"])
def test_folders_and_shards_of_any_precision_are_read_whole(
    tmp_path: Path, pipe: Any, layout: str, dtype: torch.dtype
) -> None:
    wanted = {k: v.to(dtype) for k, v in small(pipe.unet).items()}
    folder = tmp_path / "unet" if layout == "pipeline folder" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    path = tmp_path
    if layout == "one file in a folder":
        safetensors.torch.save_file(wanted, folder / "diffusion_pytorch_model.fp16.safetensors")
    else:
        index = _sharded(wanted, folder, torch_files=layout == "torch shards")
        path = index if layout == "index" else tmp_path
    back = artefact.read(path, pipe.unet)
    assert same(back, {k: v.float() for k, v in wanted.items()})
    read = files({"weights": str(path)})
    assert {p.suffix for p in read} <= {".safetensors", ".bin", ".json"}
    assert len(read) >= (1 if "one file" in layout else 3)


def _sharded(tensors: dict[str, torch.Tensor], folder: Path, torch_files: bool) -> Path:
    """As diffusers writes a model in three files."""
    end = "bin" if torch_files else "safetensors"
    where = {key: f"diffusion_pytorch_model-{i % 3 + 1:05}-of-00003.{end}" for i, key in enumerate(tensors)}
    for name in set(where.values()):
        shard = {k: v for k, v in tensors.items() if where[k] == name}
        if torch_files:
            torch.save(shard, folder / name)
        else:
            safetensors.torch.save_file(shard, folder / name)
    index = folder / f"diffusion_pytorch_model.{end}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_a_shard_that_is_missing_is_named(tmp_path: Path, pipe: Any) -> None:
    index = _sharded(small(pipe.unet), tmp_path, torch_files=False)
    (tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="no weights at .*00002-of-00003"):
        artefact.read(index, pipe.unet)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}', "{"]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.index.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.index\.json"):
        artefact.read(tmp_path / "x.index.json")


def test_a_folder_with_several_weights_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        artefact.read(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(UserError, match=r"several weights \(a\.safetensors, b\.safetensors\)"):
        artefact.read(tmp_path)


def test_a_cached_index_needs_all_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    folder = tmp_path / f"models--o--r/snapshots/{commit}/unet"
    folder.mkdir(parents=True)
    index = _sharded(small(pipe.unet), folder, torch_files=False)
    assert locate(f"hub:o/r@{commit}/unet/{index.name}") == index
    (folder / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="hf download o/r unet/diffusion_pytorch_model-00001-of-00003.safetensors"):
        locate(f"hub:o/r@{commit}/unet/{index.name}")


@pytest.mark.parametrize(
    ("key", "looks"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", "LoRA factors"),
        ("lora_gloce_down_blocks_0.alpha", "GLoCE's gates"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("input_blocks.99.0.weight", "CompVis's names"),
        ("add_embedding.linear_1.weight", "the UNet of SDXL"),
        ("double_blocks.0.img_attn.qkv.weight", "a transformer"),
        ("down_blocks.9.resnets.0.conv1.weight", "a diffusers UNet of another architecture"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip.weight", "an IP-Adapter"),
        ("something.else", "no form known here"),
    ],
)  # fmt: skip
def test_an_error_says_which_keys_did_not_match_and_what_the_file_looks_like(
    sd14: UNet2DConditionModel, key: str, looks: str
) -> None:
    with torch.device("meta"):
        tensors = {**dict(list(sd14.state_dict().items())[:4]), key: torch.zeros(1)}
    with pytest.raises(UserError, match=re.escape(f"(1 of 5 keys are not: {key!r}); it looks like {looks}")):
        artefact.check(tensors, sd14, "weights")


def test_one_wrong_key_keeps_a_compvis_file_from_being_taken_in_part(
    sd14: UNet2DConditionModel, names: dict[str, str]
) -> None:
    content = {PREFIX + v: k for k, v in list(names.items())[:20]} | {PREFIX + "input_blocks.77.0.weight": "x"}
    with pytest.raises(UserError, match="looks like CompVis's names"):
        artefact.check(formats.renamed(content, sd14), sd14, "weights")


def test_a_delta_that_also_changes_the_text_encoder_is_refused(tmp_path: Path, pipe: Any) -> None:
    content = {"unet": small(pipe.unet), "text_encoder": {"x": torch.zeros(1)}}
    torch.save(content, tmp_path / "delta.bin")
    with pytest.raises(UserError, match="changes the text encoder"):
        artefact.read(tmp_path / "delta.bin", pipe.unet)
