"""Q16 beside the formula in float64; learned prompts are read as numbers and nothing of a file is executed."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import softmax

from harness import scorers
from harness.errors import UserError
from harness.models import clip
from harness.scorers import q16
from harness.scorers.batching import Image

SHAPES = "package:harness/shapes/weights/clip"
WIDTH = 768


class Tower:
    """An image tower whose features are looked up by an image's first pixel."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = torch.from_numpy(features)

    def images(self, images: list[Image]) -> torch.Tensor:
        return self._features[[int(image[0, 0, 0]) for image in images]]


def images(count: int) -> list[Image]:
    return [np.full((3, 3, 3), i, dtype=np.uint8) for i in range(count)]


def noise(count: int, size: int = 40, seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size, size + i, 3), dtype=np.uint8) for i in range(count)]


def prompts(width: int = WIDTH, seed: int = 1) -> np.ndarray:
    """Like the published ones: long, and near each other."""
    rng = np.random.default_rng(seed)
    return (22 * rng.normal(size=width) / width**0.5 + 5 * rng.normal(size=(2, width)) / width**0.5).astype(np.float16)


def written(path: Path, array: np.ndarray, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(array, protocol=protocol))
    return path


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_it_is_the_softmax_of_a_hundred_cosines(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    learned = prompts(seed=seed).astype(np.float64)
    features = (rng.normal(size=(7, WIDTH)) + learned[rng.integers(0, 2, 7)] * rng.random((7, 1))).astype(np.float32)
    found = q16.Q16(Tower(scale * features), learned, 4)(images(7))["q16_probability"]
    x = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    e = learned / np.linalg.norm(learned, axis=1, keepdims=True)
    assert found == pytest.approx(softmax(100 * x @ e.T, axis=1)[:, 1].tolist(), rel=1e-5, abs=1e-12)


def test_a_feature_at_a_prompt_has_its_label() -> None:
    learned = prompts().astype(np.float64)
    features = np.stack([learned[0], learned[1], learned[0] + learned[1]]).astype(np.float32)
    low, high, between = q16.Q16(Tower(features), learned, 2)(images(3))["q16_probability"]
    assert low < 0.5 < high
    assert low < between < high


def test_a_feature_that_is_not_finite_costs_no_other_its_score() -> None:
    features = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    features[1, 3], features[2] = np.nan, 0
    found = q16.Q16(Tower(features), prompts().astype(np.float64), 3)([*images(4), np.zeros((3, 3), np.uint8)])
    assert found["q16_error"] == [None, "not-finite", "not-finite", None, "not-an-image"]
    assert [value is None for value in found["q16_probability"]] == [False, True, True, False, True]


def test_whole_scorer_on_a_real_tower(tmp_path: Path) -> None:
    """The world's CLIP in the place of ViT-L/14; every image scores alike whatever its batch-mates."""
    tower = clip.load({"source": SHAPES})
    learned = prompts(tower.width)
    path = written(tmp_path / "prompts.p", learned)
    with pytest.warns(UserWarning, match="none of the published Q16 prompts"):
        scorer = scorers.load("q16", {"prompts": str(path), "source": SHAPES, "micro_batch": 4})
    images = noise(6)
    together, backwards = (scorer(batch)["q16_probability"] for batch in (images, images[::-1]))
    alone = [scorer([image])["q16_probability"][0] for image in images]
    assert together == backwards[::-1] == alone
    x = tower.images(images).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    e = learned.astype(np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    assert together == pytest.approx(softmax(100 * x @ e.T, axis=1)[:, 1].tolist(), rel=1e-4, abs=1e-9)
    assert len({round(value, 6) for value in together}) > 1
    assert pa.array(together, type=q16.COLUMNS["q16_probability"]).null_count == 0
    files = [p.name for p in scorers.weights("q16", {"prompts": str(path), "source": SHAPES})]
    assert files[0] == "prompts.p"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)


@given(npst.arrays(st.sampled_from([np.float16, np.float32, np.float64]), (2, 5), elements=st.floats(0.5, 9, width=16)))
@settings(max_examples=20, deadline=None)
def test_pickled_arrays_are_read_whatever_numpy_wrote_them(tmp_path_factory: Any, array: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    for protocol in (3, 4):
        data = pickle.dumps(array, protocol=protocol)
        for name, content in (("new.p", data), ("old.p", as_old_numpy(data, protocol))):
            assert (b"numpy.core.multiarray" in content) == (name == "old.p")
            (folder / name).write_bytes(content)
            assert (q16.read_prompts(folder / name) == array.astype(np.float64)).all()


def as_old_numpy(data: bytes, protocol: int) -> bytes:
    """The pickle as NumPy 1 wrote it, whose module was called ``numpy.core.multiarray``."""
    if protocol == 3:
        return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    frame, rest = data[2:11], data[11:]  # protocol 4 has a frame and names with their length
    assert frame[:1] == b"\x95"
    rest = rest.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    return data[:2] + b"\x95" + len(rest).to_bytes(8, "little") + rest


def test_a_tensor_file_is_read(tmp_path: Path) -> None:
    array = prompts().astype(np.float32)
    torch.save(torch.nn.Parameter(torch.from_numpy(array)), tmp_path / "prompts_finetuned.pt")
    assert (q16.read_prompts(tmp_path / "prompts_finetuned.pt") == array).all()


class Evil:
    """Pickles as a call."""

    def __init__(self, call: Any, *given: Any) -> None:
        self._call = (call, given)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".p", ".pt"])
@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
def test_nothing_of_a_file_is_executed(tmp_path: Path, suffix: str, protocol: int) -> None:
    trace = tmp_path / "executed"
    for i, evil in enumerate(
        (
            Evil(os.system, f"touch {trace}"),
            Evil(os.mkdir, str(trace)),
            Evil(eval, f"open({str(trace)!r}, 'w')"),
            [prompts(), Evil(os.mkdir, str(trace))],
        )
    ):
        path = tmp_path / f"evil{i}{suffix}"
        path.write_bytes(pickle.dumps(evil, protocol=protocol))
        with pytest.raises(UserError, match="no learned prompts of Q16"):
            q16.read_prompts(path)
    assert not trace.exists()
    if suffix == ".p":
        with pytest.raises(UserError, match=r"refused to load posix\.system"):
            q16.read_prompts(tmp_path / "evil0.p")


def test_a_file_cannot_ask_for_the_whole_memory(tmp_path: Path) -> None:
    path = tmp_path / "evil.p"
    path.write_bytes(b"\x80\x03]r\xff\xff\xff\xff.")  # remember a list as number 4,294,967,295
    with pytest.raises(UserError, match="beyond the file"):
        q16.read_prompts(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [">f2", "<f4", ">f8"])
def test_order_of_bytes_and_of_places_is_the_file_s(tmp_path: Path, kind: str, order: Any) -> None:
    array = np.asarray(prompts(7), kind, order=order)
    assert (q16.read_prompts(written(tmp_path / "prompts.p", array)) == array.astype(np.float64)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 5), np.float16), r"\(2, d\) numbers, found \(3, 5\)"),
        (np.zeros(5, np.float16), r"found \(5,\)"),
        (np.ones((2, 5), np.int64), "int64"),
        (np.zeros((2, 5)), "finite and not zero"),
        (np.full((2, 5), np.inf), "finite and not zero"),
        (np.array([[None] * 5] * 2), "object"),
        ([1.0, 2.0], "holds a list, not an array"),
        (np.ones((2, 1 << 20)), "too many for two learned prompts"),
    ],
)
def test_what_are_no_prompts_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path / "prompts.p", content)
    with pytest.raises(UserError, match=message):
        q16.read_prompts(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["prompts.p", "prompts.pt"])
def test_garbage_and_cut_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"garbage", pickle.dumps(prompts(), protocol=3)[:100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no learned prompts of Q16"):
            q16.read_prompts(path)
    torch.save({"prompts": torch.ones(2, 5)}, tmp_path / "dictionary.pt")
    with pytest.raises(UserError, match="holds a dict, not a tensor"):
        q16.read_prompts(tmp_path / "dictionary.pt")


def test_the_published_set_is_known(tmp_path: Path) -> None:
    """The file of ml-research/Q16, where this machine has it."""
    path = Path(os.environ.get("HARNESS_BENCH_FILES", "/nowhere")) / "q16_prompts.p"
    if not path.is_file():
        pytest.skip("the published prompts are not on this machine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert q16.identify(path, None) == q16.identify(path, "q16") == "q16"
    with pytest.raises(UserError, match=r"the set 'q16', not 'unsafe-diffusion', which is .*RECE"):
        q16.identify(path, "unsafe-diffusion")
    first, second = q16.read_prompts(path)
    assert np.linalg.norm(first) == pytest.approx(22.17, abs=0.005)
    assert np.linalg.norm(second) == pytest.approx(21.35, abs=0.005)
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) == pytest.approx(0.887, abs=5e-4)
    with pytest.raises(UserError, match="prompts of 768 numbers, image features of"):
        q16.load({"prompts": str(path), "source": SHAPES})


def test_an_unknown_file_is_not_a_published_set(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.p", prompts())
    with pytest.warns(UserWarning, match="no paper's"):
        assert q16.identify(path, None) is None
    with pytest.raises(UserError, match=r"no published set .*not 'q16', which is data/ViT-L-14/prompts\.p of github"):
        q16.identify(path, "q16")
    with pytest.raises(UserError, match=r"unknown prompt_set 'Q16'; did you mean 'q16'\?"):
        q16.identify(path, "Q16")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"needs the parameter 'prompts', a path; download .*ml-research/Q16 at commit 33de788767bb"),
        ({"prompts": "/no/prompts.p"}, r"no file '/no/prompts\.p' \(prompts\); download"),
        ({"prompt": "x"}, r"no parameter 'prompt'; did you mean 'prompts'\?"),
        ({"prompts": __file__, "source": "laion/other"}, "give its revision"),
        ({"prompts": __file__, "source": "/no/folder"}, "no folder '/no/folder'"),
        ({"prompts": __file__, "source": "package:harness/nowhere"}, "no folder .*nowhere"),
    ],
)
def test_what_is_missing_is_named(params: dict[str, Any], message: str) -> None:
    for ask in (scorers.weights, scorers.load):
        with pytest.raises(UserError, match=message):
            ask("q16", params)


@pytest.mark.filterwarnings("ignore:.*none of the published Q16 prompts")
def test_weights_of_the_hub_say_how_to_get_them(tmp_path: Path) -> None:
    params = {"prompts": str(written(tmp_path / "prompts.p", prompts())), "source": "nobody-at-all/no-such-clip"}
    with pytest.raises(UserError, match="give its revision"):
        scorers.load("q16", params)
    pinned = {**params, "revision": "0" * 40}
    assert scorers.weights("q16", pinned) == [tmp_path / "prompts.p"]
    with pytest.raises(UserError, match="are not on this machine"):
        scorers.load("q16", pinned)
