"""DINOv2 on random weights of its class, beside the same model fed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as Pillow
from portraits import group
from transformers import BertConfig, Dinov2Config, Dinov2Model

from harness import scorers
from harness.errors import UserError
from harness.scorers import dinov2
from harness.scorers.batching import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Dinov2Model, with the preprocessor's settings of facebook/dinov2-base."""
    path = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=518, patch_size=14, layerscale_value=0.5
    )
    Dinov2Model(config).save_pretrained(path)
    settings = {
        **{f"do_{what}": True for what in ("center_crop", "convert_rgb", "normalize", "rescale", "resize")},
        "crop_size": {"height": 224, "width": 224},
        "size": {"shortest_edge": 256},
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(path)


def class_token(folder: str, image: Image) -> np.ndarray:
    """By hand: shorter side to 256 (bicubic), the middle 224, ImageNet's mean and deviation, one image."""
    height, width = image.shape[:2]
    scale = 256 / min(height, width)
    size = (int(width * scale), int(height * scale))
    scaled = np.asarray(Pillow.fromarray(image).resize(size, Pillow.Resampling.BICUBIC), np.float32)
    top, left = (scaled.shape[0] - 224) // 2, (scaled.shape[1] - 224) // 2
    middle = (scaled[top : top + 224, left : left + 224] / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    network = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        output = network(pixel_values=torch.from_numpy(middle.transpose(2, 0, 1)[None].astype(np.float32)))
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    return output.pooler_output[0].double().numpy()


def drawn() -> list[Image]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return [group(512, 512, 0), group(300, 420, 1), noise, np.full((224, 224, 3), 128, np.uint8)]


def test_images_compare_by_the_cosine_of_their_class_tokens(folder: str) -> None:
    images = drawn()
    references = [*images[1:], images[0]]
    found = scorers.load("dinov2", {"source": folder, "micro_batch": 3})(images, references)["dinov2_cosine"]
    for value, image, reference in zip(found, images, references, strict=True):
        a, b = class_token(folder, image), class_token(folder, reference)
        assert value == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=2e-5)
    assert min(found) < 0.98
    assert pa.array(found, type=dinov2.COLUMNS["dinov2_cosine"]).null_count == 0


def test_pairs_score_alike_in_any_company_and_an_image_is_like_itself(folder: str) -> None:
    images = drawn()
    references = images[::-1]
    scorer = scorers.load("dinov2", {"source": folder, "micro_batch": 3})
    together = scorer(images, references)["dinov2_cosine"]
    assert scorer(references, images)["dinov2_cosine"] == together
    assert [scorer([i], [r])["dinov2_cosine"][0] for i, r in zip(images, references, strict=True)] == together
    assert scorer(images, images)["dinov2_cosine"] == pytest.approx([1.0] * 4, abs=1e-15)


def test_what_has_no_reference_or_is_bad_costs_no_other_its_score(folder: str) -> None:
    image, other = drawn()[:2]
    bad = np.zeros((4, 4), np.uint8)
    found = scorers.load("dinov2", {"source": folder})([image, bad, image, image], [other, image, None, bad])
    assert found["dinov2_error"] == [None, "not-an-image", None, "reference-not-an-image"]
    assert [value is None for value in found["dinov2_cosine"]] == [False, True, True, True]


def test_half_precision_is_near(folder: str) -> None:
    images = drawn()
    exact, near = (
        scorers.load("dinov2", {"source": folder, "dtype": dtype})(images, images[::-1])["dinov2_cosine"]
        for dtype in ("float32", "bfloat16")
    )
    assert near == pytest.approx(exact, abs=0.02)
    assert near != exact


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dtype": "float"}, r"unknown dtype 'float'; did you mean 'float32'\?"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"layer": 3}, "no parameter 'layer'"),
        ({"source": "facebook/dinov2-large"}, "give its revision"),
        ({"source": "nobody-at-all/none", "revision": "0" * 40}, "not on this machine .*hf download"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(UserError, match=message):
        scorers.load("dinov2", {"source": folder, **params})


def test_another_model_is_refused(tmp_path: Path, folder: str) -> None:
    BertConfig().save_pretrained(tmp_path)
    settings = (Path(folder) / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(settings)
    with pytest.raises(UserError, match="is a model of type 'bert'"):
        scorers.load("dinov2", {"source": str(tmp_path)})


def test_weights_are_the_folders_files(folder: str) -> None:
    assert scorers.pair("dinov2")
    assert scorers.weights("dinov2") == []
    names = {path.name for path in scorers.weights("dinov2", {"source": folder})}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
