"""CLIP's features: transformers' own numbers, whatever the batch, the image's size or the text's length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from harness.errors import UserError
from harness.models import clip
from tools.shapes import measure

SOURCE = {"source": "package:harness/shapes/weights/clip"}
FOLDER = measure.WEIGHTS / "clip"


@pytest.fixture(scope="module")
def model() -> clip.Clip:
    return clip.load(SOURCE)


def drawn_images(n: int) -> list[np.ndarray]:
    return [np.asarray(p, dtype=np.uint8) for p in measure.renders(measure.held_out(n, "clip-images"))]


def test_features_are_those_of_transformers(model: clip.Clip) -> None:
    plain = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    said = ["a red star", "two blue circles"]
    tokens = CLIPTokenizer.from_pretrained(FOLDER)(said, padding=True, return_tensors="pt")
    images = drawn_images(3)
    pixels = CLIPImageProcessor.from_pretrained(FOLDER)(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        texts_expected = plain.text_projection(plain.text_model(**tokens).pooler_output)
        images_expected = plain.visual_projection(plain.vision_model(pixel_values=pixels).pooler_output)
    texts, cut = model.texts(said)
    assert cut == [False, False]
    torch.testing.assert_close(texts, texts_expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.images(images), images_expected, rtol=1e-4, atol=1e-5)
    assert texts.dtype == torch.float32
    assert texts.shape == (2, model.width)
    assert not torch.allclose(texts.norm(dim=1), torch.ones(2), atol=0.05)  # not normalised


def test_a_caption_is_nearest_to_its_image(model: clip.Clip) -> None:
    scenes = measure.held_out(16, "clip-match")
    images = torch.nn.functional.normalize(model.images([np.asarray(p) for p in measure.renders(scenes)]), dim=1)
    captions = [measure.world.sentence(scene) for scene in scenes]
    texts = torch.nn.functional.normalize(model.texts(captions)[0], dim=1)
    assert ((images @ texts.T).argmax(1) == torch.arange(16)).sum() >= 15


def test_a_row_does_not_depend_on_batch_mates_or_their_number(model: clip.Clip) -> None:
    images, texts = drawn_images(5), ["a red star", "a blue ring above a green star", "x", "", "a star " * 40]
    together, said = model.images(images), model.texts(texts)
    for i in range(5):
        assert torch.equal(model.images([images[i]])[0], together[i])
        alone, cut = model.texts([texts[i]])
        assert torch.equal(alone[0], said[0][i])
        assert cut == [said[1][i]]
    one = clip.Clip(model.model, model.tokenizer, model.processor, micro_batch=1)
    torch.testing.assert_close(one.images(images), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.texts(texts)[0], said[0], rtol=1e-4, atol=1e-5)


def test_images_may_differ_in_size(model: clip.Clip) -> None:
    image = drawn_images(1)[0]
    large = image.repeat(3, axis=0).repeat(3, axis=1)
    features = torch.nn.functional.normalize(model.images([image, large]), dim=1)
    assert features[0] @ features[1] > 0.9


def test_what_is_beyond_the_window_is_cut_and_said(model: clip.Clip) -> None:
    word = "star "
    fits, over = word * (model.window - 2), word * (model.window - 1)
    features, cut = model.texts([fits, over, fits + "red", "star"])
    assert cut == [False, True, True, False]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[3])


def test_nothing_in_nothing_out(model: clip.Clip) -> None:
    assert model.images([]).shape == (0, model.width)
    features, cut = model.texts([])
    assert features.shape == (0, model.width)
    assert cut == []


def test_features_may_enter_autograd(model: clip.Clip) -> None:
    target = model.texts(["a red star"])[0]
    weights = torch.ones(model.width, requires_grad=True)
    (weights * target).sum().backward()
    assert torch.equal(weights.grad, target[0])


def test_it_loads_from_a_folder_in_another_dtype(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 661,
            "max_position_embeddings": 24,
            "bos_token_id": 659,
            "eos_token_id": 660,
        },
        vision_config=dict(tower, image_size=32, patch_size=8),
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(FOLDER).save_pretrained(tmp_path)
    CLIPImageProcessor.from_pretrained(FOLDER).save_pretrained(tmp_path)
    loaded = clip.load({"source": str(tmp_path), "dtype": "bfloat16", "micro_batch": 2})
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.texts(["a", "b", "c"])[0].dtype == torch.float32
    assert loaded.images(drawn_images(1)).shape == (1, 16)


def test_the_room_for_tokens_is_known_without_the_model(model: clip.Clip, tmp_path: Path) -> None:
    assert clip.room(SOURCE["source"]) == clip.room(str(FOLDER)) == model.window - 2 == 22
    (tmp_path / "config.json").write_text("{}")
    assert clip.room(str(tmp_path)) == 75
    assert clip.room("no/such-model", "0" * 40) is None
    assert clip.room(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"source": "no/such-model"}, "hf download no/such-model"),
        ({**SOURCE, "microbatch": 3}, "did you mean 'micro_batch'"),
        ({**SOURCE, "dtype": "float3"}, "did you mean 'float32'"),
        ({**SOURCE, "micro_batch": -1}, "1 or more"),
    ],
)
def test_mistakes_are_named(params: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        clip.load(params)
