"""LPIPS on random weights of the true networks: beside the formula in float64, and beside its package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as Pillow
from portraits import group
from torch.nn import functional

from harness import scorers
from harness.errors import UserError
from harness.scorers import _lpips_net as networks
from harness.scorers import lpips
from harness.scorers.batching import Image

# Convolutions of torchvision's networks: index in ``features``, channels out and in, kernel.
CONVOLUTIONS = {
    "alex": [(0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)],
    "vgg": [
        (i, out, channels, 3)
        for i, out, channels in [
            *((0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256), (14, 256, 256)),
            *((17, 512, 256), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)),
        ]
    ],
}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def random_weights(net: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trunk and heads as in the published files, classifier and all; drawn so that no depth fades."""
    source = torch.Generator().manual_seed(len(net))
    trunk = {}
    for i, out, channels, kernel in CONVOLUTIONS[net]:
        deviation = (2 / (channels * kernel**2)) ** 0.5
        trunk[f"features.{i}.weight"] = deviation * torch.randn(out, channels, kernel, kernel, generator=source)
        trunk[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=source)
    trunk["classifier.6.bias"] = torch.zeros(1000)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=source) for i, n in enumerate(HEADS[net])}
    return trunk, heads


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters that name random weights of both networks."""
    folder = tmp_path_factory.mktemp("lpips")
    for net in lpips.NETS:
        trunk, heads = random_weights(net)
        torch.save(trunk, folder / lpips.TRUNKS[net])
        torch.save(heads, folder / f"{net}.pth")
    trunks = {f"trunk_{net}": str(folder / name) for net, name in lpips.TRUNKS.items()}
    return {**trunks, "heads": str(folder), "nets": ["alex", "vgg"], "size": 64}


def noise(count: int, height: int = 64, width: int = 64, seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def formula(net: str, first: Image, second: Image) -> float:
    """Equation 1 in float64, from the files' tensors alone."""
    trunk, heads = random_weights(net)
    pools = {"alex": (2, 5), "vgg": (4, 9, 16, 23)}[net]
    last = {"alex": 11, "vgg": 29}[net]
    taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[net]
    found = []
    for image in (first, second):
        x = torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None]) / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            3, 1, 1
        )
        depths = []
        for i in range(last + 1):
            if i in pools:
                x = functional.max_pool2d(x, 3 if net == "alex" else 2, 2)
            elif f"features.{i}.weight" in trunk:
                weight, bias = (trunk[f"features.{i}.{what}"].double() for what in ("weight", "bias"))
                stride, padding = {11: (4, 2), 5: (1, 2), 3: (1, 1)}[weight.shape[-1]]
                x = functional.conv2d(x, weight, bias, stride, padding)
            else:
                x = x.clamp(min=0)
            if i in taps:
                depths.append(x / x.norm(dim=1, keepdim=True))
        found.append(depths)
    weighed = [
        (((a - b) ** 2) * heads[f"lin{i}.model.1.weight"].double()).sum(1).mean()
        for i, (a, b) in enumerate(zip(*found, strict=True))
    ]
    return float(sum(weighed))


@pytest.mark.parametrize("net", lpips.NETS)
def test_it_is_the_formula(net: str, files: dict[str, Any]) -> None:
    first, second, third = *noise(2), np.full((64, 64, 3), 90, np.uint8)
    found = scorers.load("lpips", {**files, "nets": [net]})([first, second], [second, third])[f"lpips_{net}"]
    assert found == pytest.approx([formula(net, first, second), formula(net, second, third)], rel=2e-4)
    assert found[0] != pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("net", lpips.NETS)
@pytest.mark.parametrize("size", [64, 96])
def test_it_is_the_packages(net: str, size: int, files: dict[str, Any]) -> None:
    """The package's module with the same trunk, and its own, published heads."""
    import lpips as package

    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk, _ = random_weights(net)
    for name, parameter in theirs.net.named_parameters():
        parameter.data = trunk["features." + name.partition(".")[2]]
    ours = scorers.load("lpips", {**files, "nets": net, "heads": None, "size": size})
    images, references = noise(3, size, size), [group(size, size, 1), *noise(2, size, size, seed=7)]
    with torch.no_grad():
        expected = [
            float(theirs(*(package.im2tensor(image) for image in pair)))
            for pair in zip(images, references, strict=True)
        ]
    assert ours(images, references)[f"lpips_{net}"] == pytest.approx(expected, rel=1e-4)


def test_zero_for_itself_and_the_same_both_ways(files: dict[str, Any]) -> None:
    scorer = scorers.load("lpips", files)
    one, two = noise(2)
    found = scorer([one, one, two], [one, two, one])
    for net in lpips.NETS:
        same, there, back = found[f"lpips_{net}"]
        assert same == 0
        assert there == back > 0.01


def test_pairs_score_alike_in_any_company(files: dict[str, Any]) -> None:
    images, references = noise(6), noise(6, seed=1)
    scorer = scorers.load("lpips", {**files, "nets": ["alex"], "micro_batch": 4})
    together = scorer(images, references)["lpips_alex"]
    assert scorer(images[::-1], references[::-1])["lpips_alex"][::-1] == together
    assert [scorer([i], [r])["lpips_alex"][0] for i, r in zip(images, references, strict=True)] == together


def test_more_blur_is_less_alike(files: dict[str, Any]) -> None:
    image = group(64, 64, 2)
    shown_image = Pillow.fromarray(image)
    coarse = [np.asarray(shown_image.resize((n, n)).resize((64, 64))) for n in (56, 32, 12, 4)]
    found = scorers.load("lpips", {**files, "nets": ["alex"]})(coarse, [image] * 4)["lpips_alex"]
    assert found == sorted(found)


@pytest.mark.parametrize("resize", lpips.RESIZES)
def test_images_are_scaled_first(resize: str, files: dict[str, Any]) -> None:
    """The two published ways: OpenCV's samples, Pillow's averages."""
    images = [group(512, 512, 0), group(300, 200, 1), group(64, 64, 2)]
    scorer = scorers.load("lpips", {**files, "nets": ["alex"], "resize": resize})
    if resize == "pillow":
        small = [np.asarray(Pillow.fromarray(i).resize((64, 64), Pillow.Resampling.BILINEAR)) for i in images]
    else:
        import cv2

        small = [cv2.resize(i, (64, 64), interpolation=cv2.INTER_LINEAR) for i in images]
    for image, expected in zip(images, small, strict=True):
        assert np.abs(scorer.pixels(image) - (expected.transpose(2, 0, 1) / 127.5 - 1)).max() < 1e-6
    assert scorer(images, small)["lpips_alex"] == [0, 0, 0]
    assert scorer.pixels(np.zeros((64, 64, 3), np.uint8)).max() == -1
    assert scorer.pixels(np.full((64, 64, 3), 255, np.uint8)).min() == 1


def test_the_ways_to_scale_and_the_sizes_differ(files: dict[str, Any]) -> None:
    image, other = group(256, 256, 0), group(256, 256, 5)
    settings = ({"resize": "pillow"}, {"resize": "opencv"}, {"size": 128})
    found = [
        scorers.load("lpips", {**files, "nets": "alex", **way})([image], [other])["lpips_alex"][0] for way in settings
    ]
    assert len(set(found)) == 3


def test_a_network_that_is_not_asked_for_has_a_null_column(files: dict[str, Any]) -> None:
    one, two = noise(2)
    found = scorers.load("lpips", {**files, "nets": ["vgg"]})([one], [two])
    assert found["lpips_alex"] == [None]
    assert found["lpips_vgg"][0] > 0


def test_what_has_no_reference_or_is_bad_costs_no_other_its_score(files: dict[str, Any]) -> None:
    image, other = noise(2)
    bad = np.zeros((4, 4), np.uint8)
    found = scorers.load("lpips", files)([image, bad, image, image], [other, image, None, bad])
    assert found["lpips_error"] == [None, "not-an-image", None, "reference-not-an-image"]
    for name, kind in lpips.COLUMNS.items():
        assert [value is None for value in found[name]] == [False, True, True, True]
        assert pa.array(found[name], type=kind).null_count == 3


def test_a_distance_that_is_not_finite_has_a_code(files: dict[str, Any]) -> None:
    scorer = scorers.load("lpips", {**files, "nets": ["alex"]})
    model = networks.load("alex", Path(files["trunk_alex"]), Path(files["heads"]) / "alex.pth")
    model.heads[2].data[:] = float("nan")
    broken = lpips.Lpips({"alex": model}, 64, "pillow", 2)
    one, two = noise(2)
    assert scorer([one], [two])["lpips_error"] == [None]
    assert broken([one], [two])["lpips_error"] == ["not-finite"]


@pytest.mark.parametrize("net", lpips.NETS)
def test_the_smallest_size_is_the_smallest(net: str, files: dict[str, Any]) -> None:
    least = lpips.SMALLEST[net]
    one, two = noise(2)
    found = scorers.load("lpips", {**files, "nets": [net], "size": least})([one], [two])
    assert found[f"lpips_{net}"][0] > 0
    with pytest.raises(UserError, match=f"size is {least - 1}, not a whole number of {least} or more"):
        scorers.load("lpips", {**files, "nets": [net], "size": least - 1})
    with pytest.raises(RuntimeError):  # torch's own refusal
        networks.Lpips(net)(*(torch.zeros(1, 3, least - 1, least - 1) for _ in range(2)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nets": ["alexnet"]}, r"unknown net 'alexnet'; did you mean 'alex'\?"),
        ({"nets": []}, r"nets is \[\], not a list of alex, vgg"),
        ({"resize": "pil"}, "unknown resize 'pil'"),
        ({"size": "512"}, "size is '512'"),
        ({"net": "alex"}, r"no parameter 'net'; did you mean 'nets'\?"),
        ({"micro_batch": -1}, "micro_batch is -1"),
        (
            {"trunk_vgg": "/no/file"},
            r"no file '/no/file' \(trunk_vgg\); download https://download\.pytorch\.org/.*vgg16",
        ),
        ({"heads": "/no/folder"}, r"no file '/no/folder/alex\.pth' \(heads\); the package lpips"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], message: str, files: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        scorers.load("lpips", {**files, **params})


def test_weights_are_those_of_the_networks_asked_for(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in scorers.weights("lpips", files)]
    assert names == ["alexnet-owt-7be5be79.pth", "alex.pth", "vgg16-397923af.pth", "vgg.pth"]
    cached = {**files, "nets": ["alex"], "trunk_alex": None}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"no file '{tmp_path}/hub/checkpoints/alexnet-owt-7be5be79\.pth' .*download"):
        scorers.weights("lpips", cached)
    place = Path(torch.hub.get_dir()) / "checkpoints"
    place.mkdir(parents=True)
    (place / "alexnet-owt-7be5be79.pth").write_bytes(b"weights")
    assert scorers.weights("lpips", cached)[0] == place / "alexnet-owt-7be5be79.pth"


def test_files_of_other_networks_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the weights of 'alex'"):
        scorers.load("lpips", {**files, "nets": "alex", "trunk_alex": files["trunk_vgg"]})
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"garbage\.pth: no weights"):
        scorers.load("lpips", {**files, "nets": "alex", "trunk_alex": str(garbage)})
    torch.save([torch.zeros(3)], garbage)
    with pytest.raises(UserError, match="no weights by name"):
        scorers.load("lpips", {**files, "nets": "alex", "trunk_alex": str(garbage)})
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match="not the weights of 'alex'"):
        scorers.load("lpips", {**files, "nets": "alex", "heads": str(tmp_path)})
    torch.save({"lin0.weight": torch.zeros(64)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match="no heads of LPIPS"):
        scorers.load("lpips", {**files, "nets": "alex", "heads": str(tmp_path)})
