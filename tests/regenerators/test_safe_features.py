"""Eq. 3 to 6 against formulas in numpy's float64 and against what they must mean; every guard."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.regenerators import safe_features
from harness.regenerators.safe_features import READINGS, target

D = 24


def batch(n: int, seed: int = 0, scale: float = 10.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, unsafe and safe text features; captions near each other, as captions of one image are."""
    generator = torch.Generator().manual_seed(seed)
    image, unsafe = torch.randn(2, n, D, generator=generator) * scale
    return image, unsafe, unsafe + 0.5 * scale * torch.randn(n, D, generator=generator)


def unit(v: np.ndarray) -> np.ndarray:
    return v / math.sqrt(float(v @ v))


def formula(image: Any, unsafe: Any, safe: Any, alpha: float, lam: float, reading: str) -> np.ndarray:
    """Eq. 3 to 6 of one row, by the book, with arccos."""
    f, u, s = (np.asarray(v, np.float64) for v in (image, unsafe, safe))
    if reading != "alg1-raw":
        f, u, s = unit(f), unit(u), unit(s)
    delta = s - u
    c = float(f @ delta) * delta
    if reading == "eq4":
        c = c / float(delta @ delta)
    f = f - lam * c
    if reading != "alg1-raw":
        f = unit(f)
    theta = math.acos(float(f @ s) / math.sqrt(float(f @ f) * float(s @ s)))
    return unit(math.sin((1 - alpha) * theta) / math.sin(theta) * f + math.sin(alpha * theta) / math.sin(theta) * s)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("alpha", "lam"), [(0.7, 1.0), (0.0, 0.5), (1.0, 1.0), (0.3, 2.0)])
def test_against_the_formulas(reading: Any, alpha: float, lam: float) -> None:
    rows = batch(9)
    found = target(*rows, alpha=alpha, lam=lam, reading=reading)
    expected = [formula(*row, alpha, lam, reading) for row in zip(*rows, strict=True)]
    np.testing.assert_allclose(found.feature.numpy(), expected, atol=2e-6)
    assert found.feature.dtype == torch.float32
    assert found.notes == [()] * 9
    signs = [float(unit(i.numpy()) @ (unit(s.numpy()) - unit(u.numpy()))) > 0 for i, u, s in zip(*rows, strict=True)]
    if reading != "alg1-raw":
        assert found.already_safe.tolist() == signs
        assert len(set(signs)) == 2


def test_lambda_one_leaves_nothing_of_the_component() -> None:
    image, unsafe, safe = (torch.nn.functional.normalize(f.double(), dim=1) for f in batch(16, 1))
    delta = safe - unsafe
    kept = safe_features.remove(image, delta, 1.0, squared=True)
    assert (kept * delta).sum(1).abs().max() < 1e-12
    twice = safe_features.remove(kept, delta, 1.0, squared=True)
    torch.testing.assert_close(twice, kept)
    # Equidistant from both captions, which have the same length.
    assert ((kept * safe).sum(1) - (kept * unsafe).sum(1)).abs().max() < 1e-12
    found = target(image, unsafe, safe, alpha=0.0, lam=1.0)
    assert (found.feature.double() * delta).sum(1).abs().max() < 1e-6


def test_algorithm_1_removes_only_a_part_of_unit_features() -> None:
    image, unsafe, safe = (torch.nn.functional.normalize(f.double(), dim=1) for f in batch(16, 1))
    delta = safe - unsafe
    kept = safe_features.remove(image, delta, 1.0, squared=False)
    left = (kept * delta).sum(1) / (image * delta).sum(1)
    torch.testing.assert_close(left, 1 - delta.square().sum(1))


@pytest.mark.parametrize("reading", ["eq4", "alg1-unit"])
def test_lengths_of_what_comes_in_do_not_matter(reading: Any) -> None:
    image, unsafe, safe = batch(5)
    found = target(image, unsafe, safe, alpha=0.7, lam=1.0, reading=reading)
    scaled = target(image * 3, unsafe * 0.1, safe * 7, alpha=0.7, lam=1.0, reading=reading)
    torch.testing.assert_close(found.feature, scaled.feature)
    raw = target(image * 3, unsafe * 3, safe * 3, alpha=0.7, lam=1.0, reading="alg1-raw")
    assert not torch.allclose(found.feature, raw.feature, atol=1e-2)


def test_ends_of_the_interpolation() -> None:
    image, unsafe, safe = batch(7)
    text = target(image, unsafe, safe, alpha=1.0, lam=1.0).feature
    torch.testing.assert_close(text, torch.nn.functional.normalize(safe, dim=1))
    alone = target(image, None, safe, alpha=0.0, lam=1.0).feature
    torch.testing.assert_close(alone, torch.nn.functional.normalize(image, dim=1))


@given(st.floats(0, 1), st.integers(0, 1000))
def test_slerp_is_on_the_sphere_and_divides_the_angle(alpha: float, seed: int) -> None:
    image, _, text = (torch.nn.functional.normalize(f.double(), dim=1) for f in batch(3, seed))
    found, parallel, opposite = safe_features.slerp(image, text, alpha)
    assert not parallel.any()
    assert not opposite.any()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    theta = torch.acos((image * text).sum(1))
    torch.testing.assert_close(torch.acos((image * found).sum(1).clamp(-1, 1)), alpha * theta, atol=1e-6, rtol=0)


def test_pez_on_the_image_alone() -> None:
    image = batch(4)[0]
    found = target(image, None, None, alpha=0.7, lam=1.0)
    torch.testing.assert_close(found.feature, torch.nn.functional.normalize(image, dim=1))
    assert not found.already_safe.any()
    assert found.notes == [()] * 4


@pytest.mark.parametrize("reading", READINGS)
def test_equal_captions_remove_nothing(reading: Any) -> None:
    image, unsafe, safe = batch(3)
    safe[1] = unsafe[1] * (1 + 1e-7)
    found = target(image, unsafe, safe, alpha=0.0, lam=1.0, reading=reading)
    assert found.notes == [(), ("delta-zero",), ()]
    torch.testing.assert_close(found.feature[1], torch.nn.functional.normalize(image[1], dim=0))
    assert not found.already_safe[1]


def test_an_image_on_the_safe_side_is_left_if_so_wished() -> None:
    rows = batch(9)
    plain = target(*rows, alpha=0.0, lam=1.0)
    found = target(*rows, alpha=0.0, lam=1.0, keep_safe=True)
    image = torch.nn.functional.normalize(rows[0], dim=1)
    for i, safe in enumerate(plain.already_safe.tolist()):
        torch.testing.assert_close(found.feature[i], image[i] if safe else plain.feature[i])
        assert found.notes[i] == (("already-safe",) if safe else ())
    assert set(plain.already_safe.tolist()) == {True, False}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equal_features_interpolate_to_themselves(alpha: float) -> None:
    image = batch(2)[0]
    found = target(image, None, image * 2, alpha=alpha, lam=1.0)
    assert found.notes == [("slerp-parallel",)] * 2
    torch.testing.assert_close(found.feature, torch.nn.functional.normalize(image, dim=1))


@pytest.mark.parametrize(("alpha", "sign"), [(0.0, 1), (0.4, 1), (0.5, -1), (1.0, -1)])
def test_opposite_features_give_the_nearer_end(alpha: float, sign: int) -> None:
    image = batch(2)[0]
    found = target(image, None, -image, alpha=alpha, lam=1.0)
    assert found.notes == [("slerp-opposite",)] * 2
    torch.testing.assert_close(found.feature, sign * torch.nn.functional.normalize(image, dim=1))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_an_image_that_is_all_unsafe_leaves_the_text(alpha: float) -> None:
    _, unsafe, safe = (torch.nn.functional.normalize(f, dim=1) for f in batch(2))
    found = target(safe - unsafe, unsafe, safe, alpha=alpha, lam=1.0)
    assert all("image-zero" in notes for notes in found.notes)
    torch.testing.assert_close(found.feature, safe)


def test_almost_parallel_is_continuous() -> None:
    image = batch(64, 3)[0].double()
    for size in 10.0 ** np.arange(-12, 0):
        near = image + size * image.flip(0)
        found = target(image, None, near, alpha=0.5, lam=1.0).feature
        assert found.isfinite().all()
        expected = torch.nn.functional.normalize(
            torch.nn.functional.normalize(image, dim=1) + torch.nn.functional.normalize(near, dim=1), dim=1
        )
        torch.testing.assert_close(found, expected.float())


def test_rows_do_not_see_each_other() -> None:
    rows = batch(6)
    together = target(*rows, alpha=0.7, lam=1.0)
    alone = [target(*(f[i : i + 1] for f in rows), alpha=0.7, lam=1.0).feature[0] for i in range(6)]
    assert torch.equal(together.feature, torch.stack(alone))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"reading": "eq5"}, "eq4"), ({"alpha": 1.1}, "alpha"), ({"safe_text": None}, "safe one")],
)
def test_mistakes(change: dict[str, Any], said: str) -> None:
    image, unsafe, safe = batch(2)
    with pytest.raises(ValueError, match=said):
        target(**{"image": image, "unsafe_text": unsafe, "safe_text": safe, "alpha": 0.7, "lam": 1.0, **change})
    with pytest.raises(ValueError, match="shape"):
        target(image, unsafe, safe[:1], alpha=0.7, lam=1.0)
