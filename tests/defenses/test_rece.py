"""RECE: the derived embeddings are optimal over all layers at once, and erasing them takes them away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.defenses import rece, uce
from harness.defenses.base import BuildContext, projections

STAR = {"erase": ["star"]}


def residual(weights: dict, originals: dict, derived: torch.Tensor, concept: torch.Tensor, reg: float) -> torch.Tensor:
    """Per token: sum over layers of |W c - W0 c0|^2, plus reg |c|^2."""
    gaps = [derived @ weights[k].double().T - concept @ originals[k].T for k in originals]
    return torch.stack([g.square().sum(1) for g in gaps]).sum(0) + reg * derived.square().sum(1)


def test_without_epochs_it_is_uce(pipe: Any) -> None:
    plain, none = uce.build(pipe, STAR, BuildContext()), rece.build(pipe, {**STAR, "epochs": 0}, BuildContext())
    assert all(torch.equal(plain[k], none[k]) for k in plain)


def test_start_takes_uces_own_parameters(pipe: Any) -> None:
    params = {"lam": 2.0, "preserve": ["blue"], "technique": "tensor"}
    plain, none = (
        uce.build(pipe, {**STAR, **params}, BuildContext()),
        rece.build(pipe, {**STAR, "epochs": 0, "start": params}, BuildContext()),
    )
    assert all(torch.equal(plain[k], none[k]) for k in plain)


def test_derived_embeddings_are_optimal_over_all_layers(pipe: Any, states: Any) -> None:
    originals = projections(pipe.unet)
    weights = {k: v.double() for k, v in uce.build(pipe, STAR, BuildContext()).items()}
    concept = torch.from_numpy(states("star"))
    derived = rece.derive(weights, originals, concept, 0.1)
    best = residual(weights, originals, derived, concept, 0.1)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3):
        for _ in range(20):
            moved = derived + size * torch.randn(derived.shape, generator=generator, dtype=torch.float64)
            assert (residual(weights, originals, moved, concept, 0.1) > best).all()
    # So they still say "star" to the edited model where the word itself no longer does.
    assert (best < residual(weights, originals, concept, concept, 0.1)).all()


def test_one_epoch_is_the_edit_of_the_derived_embeddings_written_out(pipe: Any, states: Any, by_hand: Any) -> None:
    originals = projections(pipe.unet)
    start = {k: v.double().numpy() for k, v in uce.build(pipe, STAR, BuildContext()).items()}
    concept, blank = states("star"), states(" ")
    square = 0.1 * np.eye(concept.shape[1]) + sum(w.T @ w for w in start.values())
    cross = sum(start[k].T @ originals[k].numpy() for k in start)
    derived = concept @ (np.linalg.inv(square) @ cross).T
    built = rece.build(pipe, {**STAR, "epochs": 1}, BuildContext())
    for key, weight in start.items():
        expected = by_hand(weight, list(zip(derived, blank, strict=True)), list(blank), 0.1, 1.0, 0.1)
        assert np.allclose(built[key].numpy(), expected, atol=1e-4), key


def test_each_epoch_leaves_less_to_find(pipe: Any, states: Any) -> None:
    originals, concept = projections(pipe.unet), torch.from_numpy(states("star"))[1:2]
    left = []
    for epochs in range(4):
        weights = {k: v.double() for k, v in rece.build(pipe, {**STAR, "epochs": epochs}, BuildContext()).items()}
        left.append(float(residual(weights, originals, rece.derive(weights, originals, concept, 0.1), concept, 0.1)))
    assert left[0] < left[1] < left[2] < left[3]


def test_preserve_file_also_serves_the_start(pipe: Any, tmp_path: Any) -> None:
    file = tmp_path / "artists.txt"
    file.write_text("blue\nsquare\n")
    built = rece.build(pipe, {**STAR, "epochs": 0, "preserve": str(file)}, BuildContext())
    expected = uce.build(pipe, {**STAR, "preserve": ["", "blue", "square"]}, BuildContext())
    assert all(torch.equal(built[k], expected[k]) for k in expected)


def test_loading_without_what_was_built_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="artefact"):
        rece.load(pipe, STAR, None)


@pytest.mark.slow
def test_sd14_is_edited_in_its_32_matrices(sd14: Any) -> None:
    shapes = {k: v.shape for k, v in sd14.unet.state_dict().items()}
    built = rece.build(sd14, {**STAR, "epochs": 1}, BuildContext())
    assert len(built) == 32
    assert all(shapes[k] == t.shape and t.isfinite().all() for k, t in built.items())
