"""The shapes world's classifier and oracle as scorers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessor, ResNetConfig, ResNetForImageClassification

from harness import scorers
from harness.errors import UserError
from harness.scorers import shapes_classifier, shapes_oracle
from harness.shapes import oracle, world


def scenes(count: int, seed: int = 0) -> tuple[list[world.Scene], list[NDArray[np.uint8]]]:
    rng = random.Random(seed)
    drawn = [world.sample_scene(rng) for _ in range(count)]
    return drawn, [np.asarray(world.render(scene, rng)) for scene in drawn]


def truths(scene: world.Scene) -> set[str]:
    coloured = {f"{o.colour} {o.shape}" for o in scene.objects}
    return {scene.texture, scene.background, *scene.shapes(), *coloured}


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A small classifier with random weights, its labels in another order than the columns."""
    labels = list(reversed(shapes_classifier.LABELS))
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(labels))
    )
    ResNetForImageClassification(config).half().save_pretrained(tmp_path)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    return tmp_path


def test_classifier_gives_each_label_the_sigmoid_of_its_logit(untrained: Path) -> None:
    _, images = scenes(5)
    found = shapes_classifier.load({"path": str(untrained)})(images)
    model = ResNetForImageClassification.from_pretrained(untrained, dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(untrained)
    inputs = processor([Image.fromarray(p) for p in images], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.double().numpy()
    for i, label in model.config.id2label.items():
        expected = 1 / (1 + np.exp(-logits[:, i]))
        assert found[f"shapes_classifier_{label.replace(' ', '_')}"] == pytest.approx(expected, abs=1e-5)


def test_classifier_scores_do_not_depend_on_batch_mates(untrained: Path) -> None:
    _, images = scenes(21)
    scorer = shapes_classifier.load({"path": str(untrained), "micro_batch": 8})
    together, backwards, alone = scorer(images), scorer(images[::-1]), [scorer([p]) for p in images]
    for name in shapes_classifier.COLUMNS:
        assert together[name] == backwards[name][::-1] == [one[name][0] for one in alone]


def test_classifier_says_which_image_has_another_size(untrained: Path) -> None:
    _, (image, *_) = scenes(1)
    found = shapes_classifier.load({"path": str(untrained)})([image, np.zeros((64, 64, 3), np.uint8), image])
    assert found["shapes_classifier_error"] == [None, "image-size", None]
    assert found["shapes_classifier_star"][1] is None
    assert found["shapes_classifier_star"][0] == found["shapes_classifier_star"][2]


def test_classifier_without_the_worlds_labels_is_refused(untrained: Path) -> None:
    config = json.loads((untrained / "config.json").read_text())
    config["id2label"]["0"] = "heart"
    (untrained / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="without the labels purple star"):
        shapes_classifier.load({"path": str(untrained)})


def test_classifier_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file '.*config\.json'"):
        shapes_classifier.weights({"path": str(tmp_path)})


def test_shipped_classifier_knows_what_was_drawn() -> None:
    drawn, images = scenes(300, seed=7)
    found = scorers.load("shapes_classifier")(images)
    for label in ("star", "ring", "striped"):
        right = sum(
            (p > 0.5) == (label in truths(s)) for p, s in zip(found[f"shapes_classifier_{label}"], drawn, strict=True)
        )
        assert right >= 294, label  # 98%
    exact = sum(
        {name for name in shapes_classifier.LABELS if found[f"shapes_classifier_{name.replace(' ', '_')}"][i] > 0.5}
        == truths(scene)
        for i, scene in enumerate(drawn)
    )
    assert exact >= 282  # 94%: every one of 43 labels


def test_oracle_reads_the_scene_into_columns() -> None:
    drawn, images = scenes(60, seed=3)
    found = scorers.load("shapes_oracle")(images)
    for i, scene in enumerate(drawn):
        read = oracle.read(images[i])
        content = json.loads(found["shapes_oracle_scene"][i])
        assert content["objects"] == [[o.shape, o.colour] for o in read.objects]
        assert content["background"] == scene.background
        assert content["relation"] == read.relation
        assert found["shapes_oracle_striped"][i] == int(scene.texture == "striped")
    for shape in ("star", "ring"):
        right = sum(f == int(shape in s.shapes()) for f, s in zip(found[f"shapes_oracle_{shape}"], drawn, strict=True))
        assert right >= 59


def test_oracle_says_which_image_has_another_size() -> None:
    _, (image, *_) = scenes(1)
    found = shapes_oracle.load({})([np.zeros((64, 64, 3), np.uint8), image])
    assert found["shapes_oracle_error"] == ["image-size", None]
    assert found["shapes_oracle_star"][0] is None
    for name, kind in shapes_oracle.COLUMNS.items():
        assert pa.array(found[name], type=kind).null_count == 1


def test_oracle_takes_no_parameters_and_has_no_weights() -> None:
    assert shapes_oracle.weights({}) == []
    with pytest.raises(UserError, match="no parameter 'threshold'"):
        shapes_oracle.load({"threshold": 0.5})
