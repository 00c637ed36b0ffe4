from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.defenses import uce
from harness.defenses.base import BuildContext, Params, UnetDelta, parse
from harness.errors import UserError

PROMPTS = ["a red star", "blue square"]
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_detach_restores_every_bit_of_the_unet(pipe: Any, dtype: torch.dtype) -> None:
    pipe.unet.to(dtype)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    delta = {k: v.float() + 0.123 for k, v in before.items() if "attn2" in k}
    defense = UnetDelta(delta)
    defense.attach(pipe)
    for key, tensor in pipe.unet.state_dict().items():
        expected = delta[key].to(dtype) if key in delta else before[key]
        assert torch.equal(tensor, expected)
        assert tensor.dtype == dtype
    defense.detach(pipe)
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())


def test_defended_images_differ_and_undefended_ones_return(pipe: Any, draw: Any) -> None:
    before = draw(pipe, PROMPTS)
    defense = uce.load(pipe, {"erase": ["star"]}, uce.build(pipe, {"erase": ["star"]}, BuildContext()))
    defense.attach(pipe)
    changed = draw(pipe, PROMPTS, **defense.begin(PROMPTS))
    defense.detach(pipe)
    assert not torch.equal(before, changed)
    assert torch.equal(before, draw(pipe, PROMPTS))


def test_one_tensor_that_does_not_fit_leaves_the_unet_untouched(pipe: Any) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    for wrong in ({KEY + "x": torch.zeros(128, 128)}, {KEY.replace("to_k", "to_v"): torch.zeros(128, 64)}):
        with pytest.raises(UserError):
            UnetDelta({KEY: torch.zeros(128, 128), **wrong}).attach(pipe)
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())


def test_attaching_twice_is_an_error_and_keeps_the_originals(pipe: Any) -> None:
    original = pipe.unet.state_dict()[KEY].clone()
    defense = UnetDelta({KEY: torch.zeros(128, 128)})
    defense.attach(pipe)
    with pytest.raises(RuntimeError, match="attached already"):
        defense.attach(pipe)
    defense.detach(pipe)
    assert torch.equal(pipe.unet.state_dict()[KEY], original)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"erase": ["star"], "lamb": 0.5}, r"uce: unknown parameter 'lamb'; did you mean 'lam'\? \(it takes: con"),
        ({"erase": ["star"], "lam": "0.5"}, "defense uce: parameter 'lam': should be a number"),
        ({"erase": ["star"], "lam": 0}, "defense uce: parameter 'lam': should be greater than 0"),
        ({"erase": "star"}, "defense uce: parameter 'erase'"),
        ({}, "defense uce: parameter 'erase': is required"),
        ({"erase": ["star"], "variant": "uce"}, "defense uce: parameter 'variant'.*uce_2023.*uce_2025"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_named_with_what_is_allowed(params: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(uce.UceParams, params)


def test_the_guards_strictest_rule_holds_where_no_concept_is_given() -> None:
    assert Params().concept == "nudity"
