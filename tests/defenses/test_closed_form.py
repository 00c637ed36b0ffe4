"""The closed forms against float64 least squares on the stacked system, and by perturbation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.defenses.closed_form import Scales, edit, gram, recover, remove_direction

problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "width": st.integers(1, 9),
        "rows": st.integers(1, 7),
        "keys": st.integers(1, 12),
        "kept": st.integers(0, 12),
        "stay": st.floats(1e-3, 1e3),
        "erase": st.floats(0, 1e2),
        "preserve": st.floats(0, 1e2),
    }
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in arrays]


@settings(deadline=None, max_examples=60)
@given(problems)
def test_edit_is_the_least_squares_solution_of_the_stacked_system(p: dict) -> None:
    rng = np.random.default_rng(p["seed"])
    weight = rng.normal(size=(p["rows"], p["width"]))
    keys, values = rng.normal(size=(p["keys"], p["width"])), rng.normal(size=(p["keys"], p["rows"]))
    kept = rng.normal(size=(p["kept"], p["width"]))
    # One row an equation: sqrt(s) k W'^T = sqrt(s) v, sqrt(p) r W'^T = sqrt(p) r W^T, sqrt(lambda) W'^T = ...
    s, k, stay = np.sqrt(p["erase"]), np.sqrt(p["preserve"]), np.sqrt(p["stay"])
    left = np.vstack([s * keys, k * kept, stay * np.eye(p["width"])])
    right = np.vstack([s * values, k * kept @ weight.T, stay * weight.T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    w, q, v, r = tensors(weight, keys, values, kept)
    got = edit(w, q, v, gram(r), Scales(p["stay"], p["erase"], p["preserve"]))
    assert np.allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7 * (1 + abs(expected).max()))


def test_no_perturbation_of_the_edit_lowers_its_objective() -> None:
    weight, keys, values, kept = tensors(
        numbers(6, 8), numbers(5, 8, seed=1), numbers(5, 6, seed=2), numbers(4, 8, seed=3)
    )
    scales = Scales(0.5, 1.0, 0.1)

    def objective(w: torch.Tensor) -> float:
        gone = (keys @ w.T - values).square().sum()
        stays = (kept @ (w - weight).T).square().sum()
        return float(scales.erase * gone + scales.preserve * stays + scales.stay * (w - weight).square().sum())

    best = edit(weight, keys, values, gram(kept), scales)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(50):
            moved = best + size * torch.randn(best.shape, generator=generator, dtype=torch.float64)
            assert objective(moved) > objective(best)


def test_edit_tends_to_the_old_weight_as_stay_grows() -> None:
    weight, keys, values = tensors(numbers(4, 5), numbers(3, 5, seed=1), numbers(3, 4, seed=2))
    gaps = [
        (edit(weight, keys, values, gram(keys), Scales(s, 1.0, 1.0)) - weight).norm() for s in (1.0, 1e3, 1e6, 1e12)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-10


def test_edit_gives_keys_their_values_as_stay_vanishes() -> None:
    weight, keys, values = tensors(numbers(4, 8), numbers(3, 8, seed=1), numbers(3, 4, seed=2))
    got = edit(weight, keys, values, torch.zeros(8, 8), Scales(1e-10, 1.0, 0.0))
    assert torch.allclose(keys @ got.T, values, atol=1e-7)


def test_edit_of_stacked_matrices_is_the_edit_of_each() -> None:
    first, second, keys = tensors(numbers(4, 6), numbers(3, 6, seed=1), numbers(5, 6, seed=2))
    values, scales = torch.from_numpy(numbers(5, 7, seed=3)), Scales(0.5, 1.0, 1.0)
    both = edit(torch.cat([first, second]), keys, values, gram(keys), scales)
    assert torch.allclose(both[:4], edit(first, keys, values[:, :4], gram(keys), scales), atol=1e-12)
    assert torch.allclose(both[4:], edit(second, keys, values[:, 4:], gram(keys), scales), atol=1e-12)


def test_edit_refuses_a_problem_without_a_unique_solution() -> None:
    weight, keys = tensors(numbers(2, 4), numbers(1, 4))
    with pytest.raises(ValueError, match="not unique: stay is 0.0"):
        edit(weight, keys, torch.zeros(1, 2), torch.zeros(4, 4), Scales(0.0, 1.0, 1.0))


def test_removed_direction_leaves_nothing_along_it_and_the_rest_untouched() -> None:
    values, unwanted = tensors(numbers(3, 4), numbers(3, 4, seed=1))
    left = remove_direction(values, unwanted)
    assert abs(float((left * unwanted).sum())) < 1e-12
    ratio = (values - left) / unwanted  # what went is a multiple of the direction
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12), st.floats(1e-4, 10))
def test_recovered_embeddings_are_the_ridge_solution(seed: int, width: int, rows: int, reg: float) -> None:
    rng = np.random.default_rng(seed)
    edited, original = rng.normal(size=(rows, width)), rng.normal(size=(rows, width))
    concept = rng.normal(size=(3, width))
    left = np.vstack([edited, np.sqrt(reg) * np.eye(width)])
    right = np.vstack([original @ concept.T, np.zeros((width, 3))])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    got = recover(*tensors(edited, original, concept), reg).numpy()
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_no_perturbation_of_a_recovered_embedding_lowers_its_objective() -> None:
    edited, original, concept = tensors(numbers(20, 8), numbers(20, 8, seed=1), numbers(4, 8, seed=2))
    best, reg = recover(edited, original, concept, 0.1), 0.1

    def objectives(c: torch.Tensor) -> torch.Tensor:
        return ((c @ edited.T - concept @ original.T).square().sum(1) + reg * c.square().sum(1)).clone()

    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(50):
            moved = best + size * torch.randn(best.shape, generator=generator, dtype=torch.float64)
            assert (objectives(moved) > objectives(best)).all()


def test_an_unedited_map_recovers_the_concept_itself() -> None:
    original, concept = tensors(numbers(20, 8), numbers(4, 8, seed=1))
    assert torch.allclose(recover(original, original, concept, 1e-12), concept, atol=1e-9)
