"""The person detector on random weights of YOLOS's class, beside the same model fed by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as Pillow
from portraits import group
from transformers import Dinov2Config, Dinov2Model, YolosConfig, YolosForObjectDetection

from harness import scorers
from harness.errors import UserError
from harness.scorers.batching import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EDGE = 64  # of the small detector's input
PERSON = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small YOLOS with few labels, and preprocessor settings in the form of the pinned revision's."""
    path = tmp_path_factory.mktemp("yolos")
    torch.manual_seed(3)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=[EDGE, EDGE],
        patch_size=16, num_detection_tokens=40, id2label={0: "cat", PERSON: "person", 2: "chair"},
        label2id={"cat": 0, "person": PERSON, "chair": 2},
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.normal_(std=0.3)
        model.vit.embeddings.patch_embeddings.projection.weight.mul_(5)
        for layer in model.class_labels_classifier.layers:
            layer.weight.mul_(12)
    model.save_pretrained(path)
    settings = {
        "do_normalize": True, "do_resize": True, "feature_extractor_type": "YolosFeatureExtractor",
        "format": "coco_detection", "image_mean": MEAN, "image_std": DEVIATION, "max_size": 96, "size": EDGE,
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(path)


def by_hand(folder: str, image: Image) -> list[float]:
    """Shorter side to EDGE (bilinear), ImageNet's mean and deviation; the softmax of each query that says person."""
    height, width = image.shape[:2]
    assert height == width
    scaled = np.asarray(Pillow.fromarray(image).resize((EDGE, EDGE), Pillow.Resampling.BILINEAR), np.float32)
    pixels = (scaled / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    network = YolosForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = network(pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))).logits
    people = []
    for query in logits[0].double().numpy():
        odds = np.exp(query - query.max())
        share = odds / odds.sum()
        if share[:-1].argmax() == PERSON:  # the last is "nothing there"
            people.append(float(share[PERSON]))
    return people


def drawn() -> list[Image]:
    noise = np.random.default_rng(1)
    return [
        group(128, 128, 0), group(96, 96, 2), np.zeros((EDGE, EDGE, 3), np.uint8),
        noise.integers(0, 256, (80, 80, 3), dtype=np.uint8), np.full((64, 64, 3), 255, np.uint8),
    ]  # fmt: skip


def test_the_score_is_the_best_of_the_queries_that_say_person(folder: str) -> None:
    images = drawn()
    found = scorers.load("person", {"source": folder, "micro_batch": 3})(images)
    people = [by_hand(folder, image) for image in images]
    expected = [max(own, default=0.0) for own in people]
    assert found["person_score"] == pytest.approx(expected, abs=1e-4)
    assert any(max(own) - min(own) > 0.01 for own in people if own)  # the small detector does see several
    assert len(set(expected)) > 1
    assert found["person_error"] == [None] * 5
    assert pa.array(found["person_score"], type=scorers.columns("person")["person_score"]).null_count == 0


def test_a_score_does_not_depend_on_company_not_even_of_another_size(folder: str) -> None:
    images = [*drawn(), group(64, 128, 1), group(128, 80, 3)]
    scorer = scorers.load("person", {"source": folder, "micro_batch": 4})
    together = scorer(images)["person_score"]
    assert scorer(images[::-1])["person_score"][::-1] == pytest.approx(together, abs=1e-6)
    assert [scorer([image])["person_score"][0] for image in images] == pytest.approx(together, abs=1e-6)


def test_an_image_in_which_nobody_is_found_scores_0(folder: str, tmp_path: Path) -> None:
    network = YolosForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        network.class_labels_classifier.layers[-1].bias[PERSON] = -1e4
    network.save_pretrained(tmp_path)
    shutil.copy(Path(folder) / "preprocessor_config.json", tmp_path)
    assert scorers.load("person", {"source": str(tmp_path)})(drawn())["person_score"] == [0.0] * 5


def test_bad_images_and_bad_numbers_are_errors_of_their_own(folder: str, tmp_path: Path) -> None:
    found = scorers.load("person", {"source": folder})([drawn()[0], np.zeros((4, 4), np.uint8)])
    assert found["person_error"] == [None, "not-an-image"]
    assert [score is None for score in found["person_score"]] == [False, True]
    network = YolosForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        network.class_labels_classifier.layers[-1].bias[0] = float("nan")
    network.save_pretrained(tmp_path)
    shutil.copy(Path(folder) / "preprocessor_config.json", tmp_path)
    assert scorers.load("person", {"source": str(tmp_path)})(drawn()[:1])["person_error"] == ["not-finite"]


def test_a_detector_that_knows_no_person_or_is_none_is_refused(folder: str, tmp_path: Path) -> None:
    other, none, short = tmp_path / "other", tmp_path / "none", tmp_path / "short"
    for target in (other, short):
        shutil.copytree(folder, target)
    config = json.loads((other / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "cat", "1": "dog", "2": "chair"}, {"cat": 0, "dog": 1, "chair": 2}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no label 'person' .it has: cat, dog, chair"):
        scorers.load("person", {"source": str(other)})
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(none)
    shutil.copy(Path(folder) / "preprocessor_config.json", none)
    with pytest.raises(UserError, match="cannot be read"):
        scorers.load("person", {"source": str(none)})
    from safetensors.torch import load_file, save_file

    weights = load_file(short / "model.safetensors")
    del weights["class_labels_classifier.layers.0.weight"]
    save_file(weights, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensor of its Yolos.*'class_labels_classifier.layers.0.weight'"):
        scorers.load("person", {"source": str(short)})


def test_what_is_missing_is_named_with_how_to_get_it() -> None:
    with pytest.raises(UserError, match="hf download hustvl/yolos-small"):
        scorers.load("person")
    with pytest.raises(UserError, match="give its revision"):
        scorers.weights("person", {"source": "hustvl/yolos-tiny"})
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        scorers.load("person", {"dtype": "float8"})
