"""The text tower over N + 2 positions equals the padded computation of transformers, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded import PaddedTower
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from harness.regenerators.text_tower import TextTower
from tools.shapes import measure

VOCABULARY = 512


def random_model(layers: int = 3, **changes: Any) -> CLIPTextModelWithProjection:
    """ViT-L/14's text tower with fewer layers and words, and weights large enough that attention matters."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": layers,
        "projection_dim": 768,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
    }
    model = CLIPTextModelWithProjection(CLIPTextConfig(**(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


def ids(n: int, count: int, below: int = VOCABULARY - 2) -> torch.Tensor:
    return torch.randint(below, (n, count), generator=torch.Generator().manual_seed(count))


def whole(model: Any, rows: torch.Tensor, begin: int, end: int, padding: int) -> torch.Tensor:
    """Features of ids (n, N) by the model's own forward over its whole window."""
    n, count = rows.shape
    config = getattr(model.config, "text_config", model.config)
    padded = torch.full((n, config.max_position_embeddings), padding)
    padded[:, 0], padded[:, 1 : count + 1], padded[:, count + 1] = begin, rows, end
    with torch.inference_mode():
        return model.text_projection(model.text_model(input_ids=padded).pooler_output)


@pytest.mark.parametrize("count", [1, 8, 16, 75])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_those_of_the_padded_window(count: int, activation: str) -> None:
    model = random_model(2, hidden_act=activation).double()
    tower = TextTower(model, begin=VOCABULARY - 2, end=VOCABULARY - 1, dtype=torch.float64)
    rows = ids(3, count)
    found = tower(tower.embeddings[rows])
    torch.testing.assert_close(found, whole(model, rows, 510, 511, 511), rtol=1e-10, atol=1e-10)


def test_the_real_shape_in_float32() -> None:
    model = random_model(12, vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
    tower = TextTower(model, begin=49406, end=49407)
    rows = ids(2, 16, 49406)
    expected = torch.nn.functional.normalize(whole(model, rows, 49406, 49407, 49407), dim=1)
    found = torch.nn.functional.normalize(tower(tower.embeddings[rows]), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_shapes_clip() -> None:
    model = CLIPModel.from_pretrained(measure.WEIGHTS / "clip", dtype=torch.float64).eval()
    tower = TextTower(model, begin=659, end=660, dtype=torch.float64)
    rows = ids(4, 8)
    torch.testing.assert_close(tower(tower.embeddings[rows]), whole(model, rows, 659, 660, 660), rtol=1e-9, atol=1e-9)
    half = CLIPModel.from_pretrained(measure.WEIGHTS / "clip", dtype=torch.float32).eval()
    single = TextTower(half, begin=659, end=660)
    torch.testing.assert_close(single(single.embeddings[rows]), whole(half, rows, 659, 660, 660), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_padded_window() -> None:
    model = random_model(3).double()
    tower = TextTower(model, begin=510, end=511, dtype=torch.float64)
    padded = PaddedTower(model, 510, 511)
    slots = tower.embeddings[ids(3, 16)].clone().requires_grad_()
    target = torch.randn(768, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((tower(slots) @ target).sum(), slots)
    for row, gradient in zip(slots.detach(), found, strict=True):
        alone = row.clone().requires_grad_()
        feature = padded(alone)
        (expected,) = torch.autograd.grad(feature @ target, alone)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
        assert expected.norm() > 0


def test_old_configurations_pool_at_the_highest_id() -> None:
    model = random_model(2, bos_token_id=0, eos_token_id=2).double()
    tower = TextTower(model, begin=510, end=511, dtype=torch.float64)
    rows = ids(3, 8)
    rows[0, 3] = 2  # the wrong end token's id is an ordinary word
    torch.testing.assert_close(tower(tower.embeddings[rows]), whole(model, rows, 510, 511, 0), rtol=1e-10, atol=1e-10)


def test_rows_do_not_see_each_other() -> None:
    tower = TextTower(random_model(2), begin=510, end=511)
    slots = tower.embeddings[ids(6, 16)]
    together = tower(slots)
    others = slots.flip(0)
    assert torch.equal(tower(others).flip(0), together)
    torch.testing.assert_close(tower(slots[2:3]), together[2:3])


def test_the_model_stays_as_it_is_and_takes_no_gradient() -> None:
    model = random_model(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tower = TextTower(model, begin=510, end=511)
    slots = tower.embeddings[ids(2, 4)].clone().requires_grad_()
    tower(slots).sum().backward()
    assert slots.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_is_near() -> None:
    model = random_model(2)
    rows = ids(3, 16)
    tower = TextTower(model, begin=510, end=511, dtype=torch.bfloat16)
    found = tower(tower.embeddings[rows])
    assert found.dtype == torch.bfloat16
    cosines = torch.nn.functional.cosine_similarity(found.float(), whole(model, rows, 510, 511, 511), dim=1)
    assert cosines.min() > 0.999


def test_mistakes() -> None:
    model = random_model(1)
    with pytest.raises(ValueError, match="pools at token 511"):
        TextTower(model, begin=510, end=3)
    tower = TextTower(model, begin=510, end=511)
    with pytest.raises(ValueError, match="room for 75"):
        tower(torch.zeros(1, 76, 768))
