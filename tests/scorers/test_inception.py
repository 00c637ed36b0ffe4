"""FID's Inception on random weights of the true network: beside the layers written out, and beside torch-fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from portraits import group
from torch import Tensor
from torch.nn import functional

from harness import scorers
from harness.errors import UserError
from harness.metrics.frechet import fid
from harness.scorers import _inception_net as networks
from harness.scorers import inception
from harness.scorers.batching import Image


def random_weights() -> dict[str, Tensor]:
    """As in the published file, classifier and all; drawn so that no layer fades."""
    source = torch.Generator().manual_seed(0)
    state = {}
    for name, value in networks.network().state_dict().items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=source) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 0.5 + torch.rand(value.shape, generator=source)
        elif not name.endswith("num_batches_tracked"):
            state[name] = 0.1 * torch.randn(value.shape, generator=source)
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(random_weights(), path)
    return str(path)


@pytest.fixture(scope="module")
def scorer(file: str) -> inception.Inception:
    return inception.load({"weights": file, "micro_batch": 2})


class Walk:
    """The network from its tensors alone, by the names of the published file."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._state = {name: value.double() for name, value in state.items()}

    def unit(self, name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        s = self._state
        y = functional.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, var, weight, bias = (
            s[f"{name}.bn.{what}"].view(-1, 1, 1) for what in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + 0.001).sqrt() * weight + bias).clamp(min=0)

    def same(self, name: str, x: Tensor) -> Tensor:
        height, width = self._state[f"{name}.conv.weight"].shape[2:]
        return self.unit(name, x, padding=(height // 2, width // 2))

    def condition(self, names: list[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.same(name, x)
        return x

    def pooled(self, name: str, x: Tensor) -> Tensor:
        """Mean over the pixels of a 3 x 3 window that lie inside."""
        counts = functional.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3).double(), padding=1)
        sums = functional.avg_pool2d(x, 3, 1, 1) * 9
        return self.same(f"{name}.branch_pool", sums / counts)

    def a(self, m: str, x: Tensor) -> Tensor:
        fives, threes = [f"{m}.branch5x5_{i}" for i in (1, 2)], [f"{m}.branch3x3dbl_{i}" for i in (1, 2, 3)]
        parts = [self.same(f"{m}.branch1x1", x), self.condition(fives, x), self.condition(threes, x), self.pooled(m, x)]
        return torch.cat(parts, 1)

    def c(self, m: str, x: Tensor) -> Tensor:
        sevens, doubles = [f"{m}.branch7x7_{i}" for i in (1, 2, 3)], [f"{m}.branch7x7dbl_{i}" for i in range(1, 6)]
        parts = [
            self.same(f"{m}.branch1x1", x),
            self.condition(sevens, x),
            self.condition(doubles, x),
            self.pooled(m, x),
        ]
        return torch.cat(parts, 1)

    def e(self, m: str, x: Tensor, largest: bool) -> Tensor:
        threes, doubles = self.same(f"{m}.branch3x3_1", x), self.condition([f"{m}.branch3x3dbl_{i}" for i in (1, 2)], x)
        pool = self.same(f"{m}.branch_pool", functional.max_pool2d(x, 3, 1, 1)) if largest else self.pooled(m, x)
        parts = [
            self.same(f"{m}.branch1x1", x),
            *(self.same(f"{m}.branch3x3_2{side}", threes) for side in "ab"),
            *(self.same(f"{m}.branch3x3dbl_3{side}", doubles) for side in "ab"),
            pool,
        ]
        return torch.cat(parts, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.unit("Conv2d_1a_3x3", x, stride=2)
        x = self.same("Conv2d_2b_3x3", self.unit("Conv2d_2a_3x3", x))
        x = self.unit("Conv2d_3b_1x1", functional.max_pool2d(x, 3, 2))
        x = functional.max_pool2d(self.unit("Conv2d_4a_3x3", x), 3, 2)
        for letter in "bcd":
            x = self.a(f"Mixed_5{letter}", x)
        m, pool = "Mixed_6a", functional.max_pool2d(x, 3, 2)
        double = self.condition([f"{m}.branch3x3dbl_{i}" for i in (1, 2)], x)
        x = torch.cat([self.unit(f"{m}.branch3x3", x, 2), self.unit(f"{m}.branch3x3dbl_3", double, 2), pool], 1)
        for letter in "bcde":
            x = self.c(f"Mixed_6{letter}", x)
        m, pool = "Mixed_7a", functional.max_pool2d(x, 3, 2)
        threes = self.unit(f"{m}.branch3x3_2", self.same(f"{m}.branch3x3_1", x), 2)
        sevens = self.unit(f"{m}.branch7x7x3_4", self.condition([f"{m}.branch7x7x3_{i}" for i in (1, 2, 3)], x), 2)
        x = torch.cat([threes, sevens, pool], 1)
        return self.e("Mixed_7c", self.e("Mixed_7b", x, largest=False), largest=True).mean((2, 3))


def noise(count: int, size: int = 64, seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def near(found: Any, expected: np.ndarray) -> bool:
    """Within a ten-thousandth of the features' spread: 94 layers of float32."""
    return bool(np.abs(np.asarray(found, float) - expected).max() < 1e-4 * expected.std())


def test_features_are_those_of_the_layers_written_out(scorer: inception.Inception) -> None:
    images = noise(2, 299)
    images[0] //= 3
    found = scorer(images)["inception_features"]
    pixels = np.stack([(image.transpose(2, 0, 1) - 128.0) / 128 for image in images])
    with torch.inference_mode():
        expected = Walk(random_weights()).features(torch.from_numpy(pixels)).numpy()
    assert expected.std(1).min() > 0.01
    assert near(found, expected)
    kind = inception.COLUMNS["inception_features"]
    assert pa.array(found, type=kind).null_count == 0
    assert np.asarray(found).shape == (2, 2048)


def test_the_network_has_the_published_number_of_weights() -> None:
    assert sum(parameter.numel() for parameter in networks.network().parameters()) == 21_785_568


def test_features_are_torch_fidelitys(file: str) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    ours = inception.load({"weights": file, "resize": "tensorflow", "micro_batch": 1})
    for image in (group(512, 512, 0), group(200, 320, 1), noise(1, 32)[0]):
        with torch.no_grad():
            (expected,) = theirs(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))
        assert near(ours([image])["inception_features"][0], expected[0].numpy())


def cubic(size: int) -> np.ndarray:
    """(299, size): Keys' kernel with a = -1/2, as wide as a step where the image shrinks."""
    step = size / 299
    wide = max(step, 1.0)
    away = np.abs((np.arange(size) + 0.5)[None] - (np.arange(299) + 0.5)[:, None] * step) / wide
    inner, outer = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    weight = np.where(away < 1, inner, np.where(away < 2, outer, 0))
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(512, 512), (200, 320), (32, 32), (299, 299)])
def test_clean_scaling_is_bicubic_with_antialiasing_in_float(size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).integers(0, 256, size).astype(np.float32)
    expected = (cubic(size[0]) @ plane @ cubic(size[1]).T).clip(0, 255)
    assert np.abs(inception.clean(plane) - expected).max() < 1e-3


@pytest.mark.parametrize("size", [(512, 512), (1, 1), (2, 5), (299, 299), (200, 320)])
def test_tensorflows_scaling_place_by_place(size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)
    found = inception.tensorflow(plane)
    for row, column in ((0, 0), (298, 298), (17, 230), (150, 3)):
        y, x = row * size[0] / 299, column * size[1] / 299
        top, left = int(y), int(x)
        bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
        upper = plane[top, left] * (1 - x + left) + plane[top, right] * (x - left)
        lower = plane[bottom, left] * (1 - x + left) + plane[bottom, right] * (x - left)
        assert found[row, column] == pytest.approx(upper * (1 - y + top) + lower * (y - top), abs=0.02)
    if size == (299, 299):
        assert (found == plane).all()


def test_the_ways_to_scale_give_other_features(file: str) -> None:
    image = group(512, 512, 0)
    ways = [inception.load({"weights": file, "resize": way, "micro_batch": 1}) for way in inception.RESIZES]
    one, two = (scorer([image])["inception_features"][0] for scorer in ways)
    assert not near(one, np.asarray(two))


def test_an_image_has_the_same_features_in_any_company(scorer: inception.Inception) -> None:
    images = noise(3)
    together = scorer(images)["inception_features"]
    assert scorer(images[::-1])["inception_features"][::-1] == together
    assert scorer(images[1:2])["inception_features"] == together[1:2]


def test_one_bad_image_costs_no_other_its_features(scorer: inception.Inception) -> None:
    found = scorer([noise(1)[0], np.zeros((4, 4), np.uint8)])
    assert found["inception_error"] == [None, "not-an-image"]
    assert [value is None for value in found["inception_features"]] == [False, True]
    broken = networks.network()
    next(iter(broken.parameters())).data[:] = float("nan")
    assert inception.Inception(broken.eval(), "clean", 1)(noise(1))["inception_error"] == ["not-finite"]


def test_features_of_other_images_are_farther(scorer: inception.Inception) -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(2)]
    noisy, others, plain = (np.asarray(scorer(s)["inception_features"]) for s in (noise(2), noise(2, seed=1), flat))
    assert fid(noisy, others) < fid(noisy, plain)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"resize": "clear"}, r"unknown resize 'clear'; did you mean 'clean'\?"),
        ({"weights": "/no/file.pth"}, r"no file '/no/file\.pth' \(weights\); download https://github.com/toshas"),
        ({"weight": "x"}, r"no parameter 'weight'; did you mean 'weights'\?"),
        ({"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], message: str, file: str) -> None:
    with pytest.raises(UserError, match=message):
        scorers.load("inception", {"weights": file, **params})


def test_weights_lie_in_torchs_cache_under_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"no file '{tmp_path}/hub/checkpoints/weights-inception.*download"):
        scorers.weights("inception")
    place = Path(torch.hub.get_dir()) / "checkpoints"
    place.mkdir(parents=True)
    for name in reversed(inception.NAMES):
        (place / name).write_bytes(b"garbage")
        assert scorers.weights("inception") == [place / name]
    with pytest.raises(UserError, match="no weights"):
        scorers.load("inception")


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    state = random_weights()
    state["Mixed_5b.branch1x1.conv.weight"] = torch.zeros(64, 192, 3, 3)
    for content, message in (
        (state, "not the weights of FID's Inception"),
        ({"features.0.weight": torch.zeros(3)}, "not the weights of FID's Inception"),
        ([torch.zeros(3)], "no weights by name"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            scorers.load("inception", {"weights": str(path)})
