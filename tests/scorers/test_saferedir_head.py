"""SafeRedir's heads on random weights of the published names and shapes, beside their formula in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from portraits import group
from transformers import CLIPConfig, CLIPModel

from harness import scorers
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.metrics.policies import verdicts
from harness.models import clip
from harness.scorers import saferedir_head
from harness.scorers.batching import Image

SHAPES = Path(scorers.__file__).parents[1] / "shapes/weights/clip"
PUBLISHED = {  # names and shapes of IGMU's classifier_head.pth
    "attention.0.weight": (256, 512), "attention.0.bias": (256,),
    "attention.2.weight": (512, 256), "attention.2.bias": (512,),
    "classifier.0.weight": (512,), "classifier.0.bias": (512,),
    "classifier.1.weight": (256, 512), "classifier.1.bias": (256,),
    "classifier.4.weight": (128, 256), "classifier.4.bias": (128,),
    "classifier.7.weight": (1, 128), "classifier.7.bias": (1,),
}  # fmt: skip
Arrays = dict[str, NDArray[np.float64]]


def state(seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep a feature's size from layer to layer, so that probabilities are not all a half."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in PUBLISHED.items():
        spread = 2.0 / shape[-1] ** 0.5 if len(shape) == 2 else 0.3
        found[name] = torch.randn(shape, generator=generator) * spread
    return found


def logit(x: NDArray[np.float64], w: Arrays) -> float:
    """The formula of the docstring, one feature."""
    a = 1 / (1 + np.exp(-(w["attention.2.weight"] @ np.maximum(
        w["attention.0.weight"] @ x + w["attention.0.bias"], 0) + w["attention.2.bias"])))  # fmt: skip
    y = a * x
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * w["classifier.0.weight"] + w["classifier.0.bias"]
    for layer in ("1", "4"):
        y = np.maximum(w[f"classifier.{layer}.weight"] @ y + w[f"classifier.{layer}.bias"], 0)
    return float((w["classifier.7.weight"] @ y + w["classifier.7.bias"])[0])


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP with features as long as ViT-B/32's."""
    path = tmp_path_factory.mktemp("clip")
    for file in SHAPES.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, path)
    torch.manual_seed(0)
    config = CLIPConfig.from_pretrained(SHAPES)
    config.projection_dim = 512
    model = CLIPModel(config)
    with torch.no_grad():
        model.visual_projection.weight.mul_(40)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("heads")
    found = {}
    for seed, task in enumerate(("nudity", "van_gogh", "church")):
        found[task] = str(folder / f"{task}.pth")
        torch.save(state(seed), found[task])
    return found


def drawn() -> list[Image]:
    noise = np.random.default_rng(0)
    flat = [np.full((48, 48, 3), level, np.uint8) for level in (0, 90, 255)]
    return [*flat, *(noise.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(3)), group(96, 64, 1)]


def test_probabilities_are_those_of_the_formula_turned_to_the_concept(tower: str, heads: dict[str, str]) -> None:
    images = drawn()
    found = scorers.load("saferedir_head", {"source": tower, "micro_batch": 3, **heads})(images)
    features = clip.load({"source": tower}).images(images).double().numpy()
    for seed, (task, first) in enumerate([("nudity", False), ("van_gogh", True), ("church", False)]):
        weights = {name: value.double().numpy() for name, value in state(seed).items()}
        of_label_one = np.array([1 / (1 + np.exp(-logit(x, weights))) for x in features])
        own = found[f"saferedir_head_probability_{task}"]
        assert own == pytest.approx(of_label_one if first else 1 - of_label_one, abs=1e-5)
        assert max(own) - min(own) > 0.01  # the images do differ
    assert found["saferedir_head_error"] == [None] * len(images)
    for name, kind in scorers.columns("saferedir_head").items():
        assert pa.array(found[name], type=kind).null_count == 0


def test_the_true_architectures_weights_have_the_published_names_and_size() -> None:
    own = saferedir_head.head().state_dict()
    assert {name: tuple(value.shape) for name, value in own.items()} == PUBLISHED
    assert sum(value.numel() * 4 for value in own.values()) == pytest.approx(1.7e6, rel=0.02)


def test_a_task_without_a_head_has_no_scores_and_no_error(tower: str, heads: dict[str, str]) -> None:
    found = scorers.load("saferedir_head", {"source": tower, "church": heads["church"]})(drawn()[:2])
    assert found["saferedir_head_probability_nudity"] == [None, None]
    assert None not in found["saferedir_head_probability_church"]
    assert found["saferedir_head_error"] == [None, None]


def test_scores_do_not_depend_on_company(tower: str, heads: dict[str, str]) -> None:
    images = drawn()
    scorer = scorers.load("saferedir_head", {"source": tower, "micro_batch": 4, **heads})
    column = "saferedir_head_probability_nudity"
    together = scorer(images)[column]
    assert scorer(images[::-1])[column][::-1] == pytest.approx(together, abs=1e-6)
    assert [scorer([image])[column][0] for image in images] == pytest.approx(together, abs=1e-6)


def test_a_bad_image_costs_no_other_its_score(tower: str, heads: dict[str, str]) -> None:
    bad = np.zeros((4, 4), np.uint8)
    found = scorers.load("saferedir_head", {"source": tower, **heads})([drawn()[0], bad])
    assert found["saferedir_head_error"] == [None, "not-an-image"]
    assert [p is None for p in found["saferedir_head_probability_nudity"]] == [False, True]


def test_a_head_that_gives_no_number_is_an_error(tower: str, tmp_path: Path) -> None:
    broken = state(0)
    broken["classifier.7.bias"][:] = float("nan")
    torch.save(broken, tmp_path / "a.pth")
    found = scorers.load("saferedir_head", {"source": tower, "nudity": str(tmp_path / "a.pth")})(drawn()[:1])
    assert found["saferedir_head_error"] == ["not-finite"]
    assert found["saferedir_head_probability_nudity"] == [None]


@given(st.floats(-800, 800))
def test_the_two_labels_share_out_certainty(z: float) -> None:
    one, zero = saferedir_head.probability(z, 1), saferedir_head.probability(z, 0)
    assert one + zero == pytest.approx(1.0, abs=1e-12)
    assert 0 <= one <= 1
    if abs(z) > 1e-6:
        assert (one > 0.5) == (z > 0)


# Nearer to 0 the float32 sigmoid is 0.5 or one step off it, as the library pleases.
LOGITS = st.floats(-4, 4, width=32).filter(lambda z: z == 0 or abs(z) > 1e-6)


@given(st.lists(LOGITS, min_size=1, max_size=8))
def test_policies_predict_the_concept_where_the_rounded_sigmoid_says_its_label(logits: list[float]) -> None:
    for task, name in (
        ("nudity", "saferedir-nudity"),
        ("church", "saferedir-church"),
        ("van_gogh", "saferedir-van-gogh"),
    ):
        label = saferedir_head.CONCEPT_LABEL[task]
        card = load_card(PolicyCard, name, card_roots())
        values = [saferedir_head.probability(z, label) for z in logits]
        table = pa.table({card.rule.any_of[0]: pa.array(values, pa.float32())})
        rounded = torch.sigmoid(torch.tensor(logits)).round().tolist()  # as benchmark.py: a half to even, 0
        assert verdicts(card, table).to_pylist() == [int(r) == label for r in rounded]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.7.bias": None}, "it lacks 'classifier.7.bias'"),
        ({"classifier.9.weight": (1, 1)}, "it has 'classifier.9.weight' besides"),
        ({"classifier.1.weight": (256, 768)}, "'classifier.1.weight' is of shape \\(256, 768\\), not \\(256, 512\\)"),
    ],
)
def test_another_networks_weights_are_refused(
    tower: str, tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    other: dict[str, Any] = state(0)
    for name, shape in change.items():
        if shape is None:
            del other[name]
        else:
            other[name] = torch.zeros(shape)
    path = tmp_path / "head.pth"
    torch.save(other, path)
    with pytest.raises(UserError, match=rf"head.pth: no head.*(?s:.*){message}"):
        scorers.load("saferedir_head", {"source": tower, "nudity": str(path)})


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/saferedir-head-was-unpickled"),))


def test_what_is_no_head_is_refused_and_nothing_in_it_is_run(tower: str, tmp_path: Path) -> None:
    evil, text, large = tmp_path / "evil.pth", tmp_path / "text.pth", tmp_path / "large.pth"
    torch.save({"attention.0.weight": _Evil()}, evil)
    text.write_text("hello")
    large.write_bytes(b"\0" * (17 << 20))
    for path in (evil, text, large):
        with pytest.raises(UserError, match=path.name):
            scorers.load("saferedir_head", {"source": tower, "nudity": str(path)})
    assert not Path("/tmp/saferedir-head-was-unpickled").exists()


def test_what_is_missing_is_named_with_where_to_get_it(tower: str, heads: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the path of a head: nudity, van_gogh, church; download Weights/nudity"):
        scorers.weights("saferedir_head", {"source": tower})
    with pytest.raises(UserError, match="no file.*absent.pth.*Weights/style_vangogh/classifier_head.pth"):
        scorers.weights("saferedir_head", {"van_gogh": str(tmp_path / "absent.pth")})
    with pytest.raises(UserError, match="did you mean 'nudity'"):
        scorers.weights("saferedir_head", {"nudty": "x"})
    with pytest.raises(UserError, match="the heads take 512 numbers, CLIP's features have 128"):
        scorers.load("saferedir_head", {"source": str(SHAPES), **heads})
    same = tmp_path / "church"
    same.mkdir()
    shutil.copy(heads["church"], same / "nudity.pth")
    with pytest.raises(UserError, match="two heads are called 'nudity.pth'"):
        scorers.weights("saferedir_head", {"nudity": heads["nudity"], "church": str(same / "nudity.pth")})


def test_its_files_are_what_its_numbers_depend_on(tower: str, heads: dict[str, str]) -> None:
    found = {path.name for path in scorers.weights("saferedir_head", {"source": tower, **heads})}
    assert {"nudity.pth", "van_gogh.pth", "church.pth", "model.safetensors", "preprocessor_config.json"} <= found
    assert scorers.weights("saferedir_head", {"nudity": heads["nudity"]}) == [Path(heads["nudity"])]
