"""Co-Erasing and its image adapter on small real models: guidance by hand, what is frozen, resuming, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from harness import defenses
from harness.defenses import co_erasing, esd, image_adapter
from harness.defenses.base import BuildContext, BuildStep
from harness.defenses.training import loop, losses
from harness.errors import UserError


def drawing(texts: Any, seeds: Any) -> list[Image.Image]:
    """Noise in the place of the backbone's images."""
    return [Image.fromarray(np.random.default_rng(s).integers(0, 255, (32, 32, 3), dtype=np.uint8)) for s in seeds]


CONTEXT = BuildContext(draw=drawing)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A folder with a small CLIP vision model and its preprocessor."""
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    folder = tmp_path / "encoder"
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def params(encoder: str) -> dict[str, Any]:
    return {
        "erase": "star", "start": {"steps": 1, "sampler_steps": 2, "lr": 1e-3}, "image_prompts": ["a star", "red star"],
        "images": 3, "image_encoder": encoder, "adapter_prompts": ["art", "a ring"],
        "adapter_images": 2, "adapter_steps": 2, "adapter_batch": 2, "steps": 2, "lr": 1e-3,
        "sampler_steps": 2, "blur": 3, "train": "xattn",
    }  # fmt: skip


@pytest.mark.parametrize("guide", ["text", "image", "none"])
def test_image_tokens_are_refined_by_the_text(guide: str) -> None:
    torch.manual_seed(0)
    image, text = torch.randn(1, 4, 6), torch.randn(1, 9, 6)
    got = image_adapter.guided_tokens(image, text, guide)
    if guide == "none":
        assert torch.equal(got, image)
        return
    queries, values = (image[0], text[0]) if guide == "text" else (text[0], image[0])
    assert got.shape == (1, len(queries), 6)
    for q, row in zip(queries, got[0], strict=True):
        weights = torch.exp(values @ q / 6**0.5)
        assert torch.allclose(row, (weights / weights.sum()) @ values, atol=1e-5)


def test_the_adapter_adds_its_own_attention_and_leaves_the_denoiser_alone(pipe: Any) -> None:
    """With values of zero it adds nothing; with those of the text it adds attention to the image's tokens."""
    adapter = image_adapter.ImageAdapter(pipe.unet, 12)
    latents, timesteps, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randn(1, 24, 128)
    tokens = adapter.tokens(torch.randn(1, 12))
    with torch.no_grad():
        plain = losses.predict(pipe.unet, latents, timesteps, text)
        shown = adapter.predict(pipe.unet, latents, timesteps, text, tokens)
        for processor in adapter.adapters.values():
            processor.to_v_ip[0].weight.zero_()
        nothing = adapter.predict(pipe.unet, latents, timesteps, text, tokens)
        again = losses.predict(pipe.unet, latents, timesteps, text)
    assert not torch.allclose(plain, shown)
    assert torch.allclose(plain, nothing, atol=1e-5)
    assert torch.equal(plain, again)


def released_file(pipe: Any, path: Path) -> image_adapter.ImageAdapter:
    """An adapter in the released form, with names as in its own file."""
    torch.manual_seed(6)
    adapter = image_adapter.ImageAdapter(pipe.unet, 12)
    numbers = [i for i, name in enumerate(pipe.unet.attn_processors) if ".attn2." in name]
    tensors = {f"image_proj.{part}.{kind}": getattr(getattr(adapter, part), kind).detach().clone()
               for part in ("proj", "norm") for kind in ("weight", "bias")}  # fmt: skip
    for number in numbers:
        processor = adapter.adapters[str(number)]
        for letter in "kv":
            linear = getattr(processor, f"to_{letter}_ip")[0]
            torch.nn.init.normal_(linear.weight)
            tensors[f"ip_adapter.{number}.to_{letter}_ip.weight"] = linear.weight.detach().clone()
    if path.suffix == ".bin":
        nested: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, rest = key.partition(".")
            nested.setdefault(group, {})[rest] = tensor
        torch.save(nested, path)
    else:
        safetensors.torch.save_file(tensors, path)
    return adapter


@pytest.mark.parametrize("name", ["ip-adapter.safetensors", "ip-adapter.bin"])
def test_a_released_adapter_loads_in_either_form(pipe: Any, tmp_path: Path, name: str) -> None:
    written = released_file(pipe, tmp_path / name)
    read = image_adapter.released(tmp_path / name, pipe.unet)
    tensors = read.state_dict()
    assert tensors.keys() == written.state_dict().keys()
    assert all(torch.equal(tensors[k], v) for k, v in written.state_dict().items())


def test_an_adapter_of_another_denoiser_is_refused(pipe: Any, tmp_path: Path) -> None:
    released_file(pipe, tmp_path / "a.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    gone = {k: v for k, v in tensors.items() if not k.startswith("ip_adapter.1.")}
    safetensors.torch.save_file(gone, tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"needs 'adapters.1.to_k_ip.0.weight' of shape .*did you mean"):
        image_adapter.released(tmp_path / "gone.safetensors", pipe.unet)
    safetensors.torch.save_file({"image_proj.latents": torch.zeros(2)}, tmp_path / "plus.safetensors")
    with pytest.raises(UserError, match="only plain image adapters are read"):
        image_adapter.released(tmp_path / "plus.safetensors", pipe.unet)
    with pytest.raises(UserError, match="no image adapter at"):
        image_adapter.released(tmp_path / "none.safetensors", pipe.unet)


def test_an_adapter_learns_to_draw_what_it_reads(pipe: Any) -> None:
    told: list[BuildStep] = []
    torch.manual_seed(0)
    kinds = torch.randn(2, 4, 8, 8) * 2
    latents, embeddings = kinds.repeat(4, 1, 1, 1), torch.eye(2, 12).repeat(4, 1) * 5
    text = losses.text_states(pipe, ["art"], "nudity").repeat(8, 1, 1)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    image_adapter.trained(pipe, latents, embeddings, text, (40, 3e-3, 4, 0), BuildContext(report=told.append))
    values = [s.loss for s in told]
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())


def test_both_stages_change_their_parts_and_nothing_else(pipe: Any, params: dict) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    built = co_erasing.build(pipe, params, CONTEXT)
    first, second = esd.part(pipe.unet, "noxattn"), esd.part(pipe.unet, "xattn")
    assert built.keys() == {k for k, _ in pipe.unet.named_parameters() if first(k) or second(k)}
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    stage_one = esd.build(pipe, {**params["start"], "erase": ["star"]}, CONTEXT)
    assert all(torch.equal(built[k], stage_one[k]) for k in built if not second(k))
    assert any(not torch.equal(built[k], before[k]) for k in built if second(k))
    assert not any("_ip" in k for k in built)


def test_without_a_second_stage_it_is_esd(pipe: Any, params: dict) -> None:
    built = co_erasing.build(pipe, {**params, "steps": 0}, CONTEXT)
    stage_one = esd.build(pipe, {**params["start"], "erase": ["star"]}, CONTEXT)
    state = pipe.unet.state_dict()
    assert all(torch.equal(built[k], stage_one.get(k, state[k])) for k in built)


@pytest.mark.parametrize("guide", ["text", "image"])
def test_training_lowers_the_loss(pipe: Any, params: dict, guide: str) -> None:
    told: list[BuildStep] = []
    more = {**params, "guide": guide, "steps": 40, "lr": 1e-3, "train": "full", "start": {"steps": 0}, "batch": 2}
    co_erasing.build(pipe, more, BuildContext(draw=drawing, report=told.append))
    values = [s.loss for s in told if s.phase == "images" and s.loss is not None]
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


def test_a_build_that_was_stopped_gives_what_a_whole_one_gives(
    pipe: Any, params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: BuildStep) -> None:
        if step.phase == "images" and step.step == 1:
            raise StoppedError

    whole = co_erasing.build(pipe, params, CONTEXT)
    plan = loop.Training
    monkeypatch.setattr(loop, "Training", lambda **values: plan(**{**values, "save_every": 1}))
    folder = tmp_path / "build"
    with pytest.raises(StoppedError):
        co_erasing.build(pipe, params, BuildContext(folder=folder, draw=drawing, report=stop))
    resumed = co_erasing.build(pipe, params, BuildContext(folder=folder))  # nobody draws again
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_published_unet_loads_without_the_adapters_tensors(pipe: Any, params: dict, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    place = "mid_block.attentions.0.transformer_blocks.0.attn2.processor."
    torch.save({**state, f"{place}to_v_ip.weight": torch.zeros(128, 128)}, tmp_path / "unet_1499.pth")
    read = defenses.build("co_erasing", pipe, {**params, "weights": str(tmp_path / "unet_1499.pth")})
    assert read.keys() == state.keys()
    torch.save({**state, f"{place}to_q_ip.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="to_q_ip"):
        defenses.build("co_erasing", pipe, {**params, "weights": str(tmp_path / "other.pth")})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blur": 4}, "odd side, not 4"),
        ({"guide": "texts"}, "parameter 'guide'"),
        ({"start": {"lrr": 1}}, "unknown parameter 'lrr'"),
        ({"start": {"erase": ["ring"]}}, "it takes no 'erase'"),
        ({"erase": "a girl"}, "age-term"),
        ({"image_encoder": "/nowhere"}, "the image encoder: .*not on this machine"),
        ({"image_adapter": "/nowhere/a.bin"}, "no image adapter at"),
        ({"adapter_prompts": []}, "co_erasing: it needs an `image_adapter`"),
    ],
)
def test_what_cannot_be_built_is_refused(pipe: Any, params: dict, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        co_erasing.build(pipe, {**params, **change}, CONTEXT)


def test_an_adapter_of_another_encoder_is_refused(pipe: Any, params: dict, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    released_file(pipe, path)
    tensors = safetensors.torch.load_file(path)
    tensors["image_proj.proj.weight"] = torch.zeros(512, 99)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match="reads embeddings of width 99, .* gives 12"):
        co_erasing.build(pipe, {**params, "image_adapter": str(path)}, CONTEXT)


def test_the_released_adapter_fits_sd14(sd14: Any) -> None:
    with torch.device("meta"):
        adapter = image_adapter.ImageAdapter(sd14.unet, 1024)
    tensors = dict(adapter.named_parameters())
    assert len(tensors) == 4 + 32
    assert sum(t.numel() for t in tensors.values()) == 22_319_616  # 19.2 M of keys and values, 3.1 M of the projection
    assert {k.split(".")[1] for k in tensors if k.startswith("adapters.")} == {str(i) for i in range(1, 32, 2)}


def test_an_estimate_counts_both_stages_and_the_adapters(params: dict) -> None:
    first = esd.estimate({**params["start"], "erase": ["star"]})
    assert co_erasing.estimate(params).steps == first.steps + 2 + 2
    assert co_erasing.estimate(params).images == 5
    assert co_erasing.estimate({**params, "image_adapter": "x"}).steps == first.steps + 2
