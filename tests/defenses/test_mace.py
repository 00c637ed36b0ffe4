"""MACE: its three stages against float64 least squares, by hand and by loss decrease; its masks; its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import defenses
from harness.defenses import mace, mace_training, masks
from harness.defenses.base import BuildContext, BuildStep, projections
from harness.defenses.training.attention import recorded_attention
from harness.errors import UserError

PARAMS = {
    "erase": ["star", "red ring"], "target": "art", "templates": ["a {}", "blue {} art"],
    "preserve": ["", "square", "blue"], "lam": 0.1, "refine_scale": 0.5, "fuse_scale": 0.5, "image_template": "a {}",
    "images": 2, "mask": "attention",
    "mask_side": 8, "steps": 2, "lr": 1e-2,
}  # fmt: skip


def drawing(texts: Any, seeds: Any) -> list[Image.Image]:
    """Noise in the place of the backbone's images."""
    return [Image.fromarray(np.random.default_rng(s).integers(0, 255, (32, 32, 3), dtype=np.uint8)) for s in seeds]


CONTEXT = BuildContext(draw=drawing)


def settings(**params: Any) -> mace.MaceParams:
    return mace.parse(mace.MaceParams, {**PARAMS, **params})


@pytest.mark.parametrize(
    ("old", "new", "window", "expected"),
    [
        ([9, 1, 5, 8], [9, 1, 6, 8], 6, ([0, 1, 3, 4, 5], [0, 1, 3, 4, 5])),
        ([9, 1, 5, 5, 2, 8], [9, 1, 6, 2, 8], 8, ([0, 1, 4, 5, 6, 7], [0, 1, 3, 4, 5, 6])),
        ([9, 5, 8], [9, 6, 7, 8], 5, ([0, 2, 3], [0, 3, 4])),
        ([9, 5, 8], [9, 5, 8], 4, ([0, 1, 2, 3], [0, 1, 2, 3])),
        ([9, 5, 5, 8], [9, 5, 8], 5, ([0, 1, 3, 4], [0, 1, 2, 3])),
    ],
)
def test_positions_that_two_prompts_share(old: list, new: list, window: int, expected: tuple) -> None:
    assert mace.shared_positions(old, new, window) == expected


def test_the_first_stage_is_least_squares_over_the_shared_words(pipe: Any, states: Any) -> None:
    own = settings(erase=["star"], templates=["a red {}"])
    kept = mace.captions(pipe, own)
    refined = mace.refine(pipe, projections(pipe.unet), own, kept, 0.25)
    # "a red star" and "a red art": start, a, red, (star | art), end...
    here = [0, 1, 2, *range(4, 24)]
    keys, values = states("a red star")[here], states("a red art")[here]
    captions = np.concatenate([states(text) for text in ("", "square", "blue")])
    for key, weight in projections(pipe.unet).items():
        w = weight.numpy()
        left = np.vstack([keys, 0.5 * captions, np.sqrt(0.1) * np.eye(w.shape[1])])
        right = np.vstack([values @ w.T, 0.5 * captions @ w.T, np.sqrt(0.1) * w.T])
        assert np.allclose(refined[key].numpy(), np.linalg.lstsq(left, right, rcond=None)[0].T, atol=1e-6), key


def test_the_released_variant_squares_the_captions_scale(pipe: Any) -> None:
    released = mace.build(pipe, {**PARAMS, "steps": 0}, CONTEXT)
    described = mace.build(pipe, {**PARAMS, "steps": 0, "variant": "described", "refine_scale": 0.25}, CONTEXT)
    assert all(torch.allclose(released[k], described[k], atol=1e-6) for k in released)


def fusion(seed: int = 0, lam: float = 0.1) -> tuple[dict, dict, list, torch.Tensor, mace.MaceParams, np.ndarray]:
    """Originals, refined, states with changes for two concepts, captions' sum, settings, the captions."""
    rng = np.random.default_rng(seed)
    original, refined = ({"w": torch.from_numpy(rng.normal(size=(4, 6)))} for _ in range(2))
    changed = [
        (torch.from_numpy(rng.normal(size=(5, 6))), {"w": torch.from_numpy(rng.normal(size=(4, 6)))}) for _ in range(2)
    ]
    captions = rng.normal(size=(9, 6))
    return original, refined, changed, torch.from_numpy(captions.T @ captions), settings(lam=lam), captions


@pytest.mark.parametrize("lam", [0.1, 0.0])
def test_fusion_is_least_squares_over_all_concepts_and_the_undefended_captions(lam: float) -> None:
    original, refined, changed, kept, own, captions = fusion(lam=lam)
    fused = mace.fuse(original, refined, changed, kept, own)["w"].numpy()
    rows = [(s.numpy(), s.numpy() @ (refined["w"] + c["w"]).numpy().T) for s, c in changed]
    rows += [(np.sqrt(0.5) * captions, np.sqrt(0.5) * captions @ original["w"].numpy().T)]
    rows += [(np.sqrt(lam) * np.eye(6), np.sqrt(lam) * refined["w"].numpy().T)]
    left, right = np.vstack([a for a, _ in rows]), np.vstack([b for _, b in rows])
    assert np.allclose(fused, np.linalg.lstsq(left, right, rcond=None)[0].T, atol=1e-9)


def test_no_perturbation_of_the_fusion_lowers_its_objective() -> None:
    original, refined, changed, kept, own, captions = fusion(1)
    rows = torch.from_numpy(captions)

    def objective(w: torch.Tensor) -> float:
        concepts = sum((s @ (w - refined["w"] - c["w"]).T).square().sum() for s, c in changed)
        stays = (rows @ (w - original["w"]).T).square().sum()
        return float(concepts + 0.5 * stays + 0.1 * (w - refined["w"]).square().sum())

    best = mace.fuse(original, refined, changed, kept, own)["w"]
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3):
        for _ in range(30):
            assert objective(best + size * torch.randn(4, 6, generator=generator, dtype=torch.float64)) > objective(
                best
            )


def test_fusion_leaves_the_refined_weights_bit_for_bit_as_lambda_grows() -> None:
    original, refined, changed, kept, own, _ = fusion(lam=1e25)
    fused = mace.fuse(original, refined, changed, kept, own)
    assert torch.equal(fused["w"].float(), refined["w"].float())


def test_without_lambda_captions_that_span_too_little_are_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match="mace: the edit is not unique.*raise `lam`, or give more captions"):
        mace.build(pipe, {**PARAMS, "lam": 0.0}, CONTEXT)
    with pytest.raises(UserError, match="mace: with lam 0 the edits need captions"):
        mace.build(pipe, {**PARAMS, "lam": 0.0, "preserve": None}, CONTEXT)


def test_captions_that_the_guard_refuses_or_that_name_a_concept_are_left_out(pipe: Any) -> None:
    plain = mace.captions(pipe, settings(preserve=["blue"]))
    assert torch.equal(plain, mace.captions(pipe, settings(preserve=["blue", "a girl", "a star"])))
    domain = mace.captions(pipe, settings(preserve=["blue"], domain=["square"], domain_scale=3.0))
    assert torch.allclose(domain - plain, 3 * mace.captions(pipe, settings(preserve=["square"])))


def test_attention_inside_the_mask_is_summed_layer_by_layer() -> None:
    torch.manual_seed(0)
    maps = {"fine": torch.rand(2, 3, 16, 5), "coarse": torch.rand(2, 3, 4, 5)}
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0, 0], mask[1, 0, 2:, 2:] = 1, 1
    norms = [
        (
            maps["fine"][0, :, 0, [1, 4]].square().sum()
            + maps["fine"][1, :, [10, 11, 14, 15]][..., [1, 4]].square().sum()
        ),
        (maps["coarse"][0, :, 0, [1, 4]].square().sum() + maps["coarse"][1, :, 3, [1, 4]].square().sum()),
    ]
    expected = sum(n.sqrt() for n in norms)
    assert float(mace_training.attention_left(maps, mask, [1, 4])) == pytest.approx(float(expected), rel=1e-5)


def test_a_concepts_positions_are_its_words_and_every_end(pipe: Any) -> None:
    ids = pipe.tokenizer("a red ring art", padding="max_length", max_length=24).input_ids
    ends = [i for i, token in enumerate(ids) if token == pipe.tokenizer.eos_token_id]
    assert masks.concept_positions(pipe, "a red ring art", "red ring", False) == [2, 3]
    assert masks.concept_positions(pipe, "a red ring art", "red ring", True) == [2, 3, *ends]


def test_focal_sampling_is_the_papers_curve() -> None:
    weights = mace_training.focal_weights(1000).numpy()
    t = np.arange(1000)
    expected = 1 / (1 + np.exp(-0.05 * (t - 200))) - 1 / (1 + np.exp(-0.05 * (t - 400)))
    assert np.allclose(weights, expected)
    assert weights.argmax() in range(295, 306)


def test_a_change_withdraws_attention_from_the_concept_and_is_of_the_cards_rank(pipe: Any) -> None:
    told: list[BuildStep] = []
    own = settings(steps=30, mask="everywhere", erase=["star"], lr=3e-2)
    context = BuildContext(draw=drawing, report=told.append)
    changes = mace_training.low_rank_change(pipe, projections(pipe.unet), own, 0, context)
    losses = [s.loss for s in told if s.loss is not None]
    assert sum(losses[-8:]) < 0.98 * sum(losses[:8])
    assert changes.keys() == projections(pipe.unet).keys()
    ranks = {key: int(torch.linalg.matrix_rank(change, rtol=1e-4)) for key, change in changes.items()}
    # What no later attention reads has no gradient: the values of the last attention.
    assert {key for key, rank in ranks.items() if rank == 0} == {
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    }
    assert set(ranks.values()) == {0, 1}


def test_only_the_projections_change_and_the_pipeline_stays(pipe: Any) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    built = mace.build(pipe, PARAMS, CONTEXT)
    assert built.keys() == projections(pipe.unet).keys()
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert any(not torch.equal(built[k], before[k]) for k in built)


def test_a_build_that_was_stopped_gives_what_a_whole_one_gives(pipe: Any, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: BuildStep) -> None:
        if step.phase == "change-1" and step.step == 1:
            raise StoppedError

    whole = mace.build(pipe, PARAMS, CONTEXT)
    with pytest.raises(StoppedError):
        mace.build(pipe, PARAMS, BuildContext(folder=tmp_path, draw=drawing, report=stop))
    resumed = mace.build(pipe, PARAMS, BuildContext(folder=tmp_path, draw=None))  # nothing is drawn again
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_attention_mask_is_the_undefended_denoisers(pipe: Any) -> None:
    latents = torch.randn(2, 4, 8, 8)
    mask = masks.attended(pipe, latents, "a star", "star", settings(mask_threshold=0.5))
    assert mask.shape == (2, 1, 8, 8)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, masks.attended(pipe, latents, "a star", "star", settings(mask_threshold=0.5)))
    assert torch.equal(
        masks.masks(pipe, [], latents, "a star", "star", settings(mask="everywhere")), torch.ones(0, 1, 1, 1)
    )
    with recorded_attention(pipe.unet) as maps:
        assert maps == {}


def test_a_segmenter_that_is_not_here_says_how_to_get_it(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download IDEA-Research/grounding-dino-base"):
        mace.build(pipe, {**PARAMS, "mask": "segmenter"}, BuildContext())  # before anything is drawn


def test_a_build_without_anyone_who_draws_is_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match="trains on images that the backbone draws"):
        mace.build(pipe, PARAMS, BuildContext())


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"erase": ["a boy"]}, "age-term"),
        ({"mask": "sam"}, "parameter 'mask'.*segmenter.*attention.*everywhere"),
        ({"templates": ["a photo"]}, "parameter 'templates'"),
        ({"variant": "original"}, "parameter 'variant'.*released.*described"),
    ],
)
def test_what_cannot_be_built_is_refused(pipe: Any, params: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        mace.build(pipe, {**PARAMS, **params}, CONTEXT)


def test_a_published_pipelines_folder_loads(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    read = defenses.build("mace", pipe, {**PARAMS, "weights": str(tmp_path)})
    assert read.keys() == pipe.unet.state_dict().keys()
    with pytest.raises(ValueError, match="artefact"):
        mace.load(pipe, PARAMS, None)


def test_sd14_is_edited_in_its_32_matrices(sd14: Any) -> None:
    own = settings(templates=["a {}"])
    refined = mace.refine(sd14, projections(sd14.unet), own, mace.captions(sd14, own), 0.5)
    nothing = {k: torch.zeros_like(w) for k, w in refined.items()}
    changed = [(mace.concept_states(sd14, own, "star"), nothing)]
    fused = mace.fuse(projections(sd14.unet), refined, changed, mace.captions(sd14, own), own)
    assert len(fused) == 32
    assert all(tuple(w.shape) == tuple(sd14.unet.state_dict()[k].shape) for k, w in fused.items())


def test_an_estimate_counts_steps_and_images_of_every_concept() -> None:
    assert mace.estimate(PARAMS) == (4, 4, 12)
