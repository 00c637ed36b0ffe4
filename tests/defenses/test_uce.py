"""UCE against its definition written out token by token, on random models of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.defenses import uce
from harness.defenses.base import BuildContext, parse, projections
from harness.errors import UserError


@pytest.fixture
def assert_same(pipe: Any, by_hand: Any) -> Any:
    def check(built: dict[str, torch.Tensor], *problem: Any) -> None:
        assert len(built) == 2 * 7  # this UNet has seven cross-attentions
        for key, weight in projections(pipe.unet).items():
            expected = by_hand(weight.numpy(), *problem)
            assert built[key].dtype == torch.float32
            assert np.allclose(built[key].numpy(), expected, atol=1e-5), key

    return check


def test_keys_run_from_the_last_content_token_and_values_from_the_targets(
    pipe: Any, states: Any, assert_same: Any
) -> None:
    built = uce.build(pipe, {"erase": ["red star"], "target": " "}, BuildContext())
    # "red star": start, red, star, end...: content ends at 2. " " has none: its slice begins at the start token.
    old, new, empty = states("red star"), states(" "), states("")
    pairs = [(old[2 + i], new[i]) for i in range(24 - 2)]
    assert_same(built, pairs, list(empty), 0.5, 1.0, 1.0)


def test_a_target_with_more_words_shortens_the_slice_at_the_end(pipe: Any, states: Any, assert_same: Any) -> None:
    built = uce.build(pipe, {"erase": ["star"], "target": "blue square art"}, BuildContext())
    old, new, empty = states("star"), states("blue square art"), states("")
    pairs = [(old[1 + i], new[3 + i]) for i in range(24 - 3)]
    assert_same(built, pairs, list(empty), 0.5, 1.0, 1.0)


def test_preserving_many_texts_lowers_the_weight_of_each(pipe: Any, states: Any, assert_same: Any) -> None:
    built = uce.build(pipe, {"erase": ["star"], "preserve": ["", "blue", "square"]}, BuildContext())
    kept = [k for text in ("", "blue", "square") for k in states(text)]
    pairs = list(zip(states("star")[1:], states(" "), strict=False))
    assert_same(built, pairs, kept, 0.5, 1.0, 0.333)


def test_the_2025_variant_takes_one_vector_a_concept(pipe: Any, states: Any, assert_same: Any) -> None:
    params = {"variant": "uce_2025", "erase": ["star", "red ring"], "target": "art", "preserve": ["blue square"]}
    new = states("art")[1]
    pairs = [(states("star")[1], new), (states("red ring")[2], new)]
    assert_same(uce.build(pipe, params, BuildContext()), pairs, [states("blue square")[2]], 0.5, 1.0, 1.0)


def test_templates_erase_each_phrasing(pipe: Any) -> None:
    phrased = uce.build(pipe, {"erase": ["star"], "templates": ["{}", "red {}"]}, BuildContext())
    listed = uce.build(pipe, {"erase": ["star", "red star"]}, BuildContext())
    assert all(torch.equal(phrased[k], listed[k]) for k in listed)


def test_tensor_technique_takes_away_only_the_erased_direction(pipe: Any, states: Any) -> None:
    params = {"erase": ["star"], "technique": "tensor", "lam": 1e-6, "preserve_scale": 0.0}
    built = uce.build(pipe, params, BuildContext())
    old, new = states("star")[1:], states(" ")[:-1]
    for key, weight in projections(pipe.unet).items():
        was, target = old @ weight.numpy().T, new @ weight.numpy().T
        wanted = target - (target * was).sum() / (was * was).sum() * was
        assert np.allclose(old @ built[key].double().numpy().T, wanted, atol=1e-2), key


def test_an_erased_text_answers_as_the_target_and_a_preserved_one_as_before(pipe: Any, states: Any) -> None:
    built = uce.build(pipe, {"erase": ["star"], "preserve": ["", "blue square"], "preserve_scale": 1.0}, BuildContext())
    old, new, kept = states("star")[1:], states(" ")[:-1], states("blue square")
    for key, weight in projections(pipe.unet).items():
        before, after = weight.numpy(), built[key].double().numpy()
        gap = np.linalg.norm(old @ before.T - new @ before.T)
        assert np.linalg.norm(old @ after.T - new @ before.T) < 0.35 * gap
        assert np.linalg.norm(kept @ (after - before).T) < 0.35 * np.linalg.norm(kept @ before.T)


def test_building_leaves_the_pipeline_alone(pipe: Any) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    uce.build(pipe, {"erase": ["star"]}, BuildContext())
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())


def test_preserve_file_adds_its_lines_but_those_with_an_erased_name(tmp_path: Path) -> None:
    file = tmp_path / "artists.txt"
    file.write_text("Blue\n\nRED\nthe red artist\nFred\nart\n", encoding="utf-8")
    settings = parse(uce.UceParams, {"erase": ["red"], "preserve": str(file)})
    assert uce.texts(settings.preserve, settings.erase, ("",)) == ("", "Blue", "Fred", "art")


def test_preserved_texts_that_contain_an_erased_one_are_left_out() -> None:
    kept = uce.texts(("", " ", "a Star (red)", "stars", "ring"), ("star", "a.c"), ("unused",))
    assert kept == ("", " ", "stars", "ring")


@pytest.mark.parametrize("content", [None, "", "star\n"])
def test_preserve_file_missing_or_empty_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "artists.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"artists\.txt"):
        uce.texts(str(file), ("star",), ("",))


@pytest.mark.parametrize(
    "params", [{"erase": ["child"]}, {"erase": ["star"], "target": "a girl"}, {"erase": ["a"], "preserve": ["boy"]}]
)
def test_no_text_that_the_guard_refuses_is_built_from(pipe: Any, params: dict) -> None:
    with pytest.raises(UserError, match="age-term"):
        uce.build(pipe, params, BuildContext())


def test_the_guard_rules_by_the_runs_concept(pipe: Any) -> None:
    uce.build(pipe, {"erase": ["star"], "preserve": ["boy"], "concept": "violence"}, BuildContext())


def test_a_text_longer_than_the_window_is_refused_rather_than_cut(pipe: Any) -> None:
    with pytest.raises(UserError, match=r"takes 27 tokens, the text encoder 24"):
        uce.build(pipe, {"erase": [" ".join(["star"] * 25)]}, BuildContext())


def test_sd14_is_edited_in_its_32_matrices_whatever_the_width_and_window(sd14: Any) -> None:
    shapes = {k: v.shape for k, v in sd14.unet.state_dict().items()}
    assert len(shapes) == 686
    assert sum(s.numel() for s in shapes.values()) == 859_520_964
    built = uce.build(sd14, {"erase": ["star"]}, BuildContext())
    assert len(built) == 32
    assert sum(t.numel() for t in built.values()) == 19_169_280
    assert all(shapes[k] == t.shape and t.isfinite().all() for k, t in built.items())
    key = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight"
    assert key in built
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in built
