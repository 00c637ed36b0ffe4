"""Schedulers: what cards list before anything is loaded, beside what diffusers itself calls compatible."""

from __future__ import annotations

import diffusers
import pytest

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.errors import UserError
from harness.models import schedulers, text_to_image

SHIPPED = {
    "sd-1-4": "PNDMScheduler",
    "sd-1-5": "PNDMScheduler",
    "sdxl": "EulerDiscreteScheduler",
    "sd3": "FlowMatchEulerDiscreteScheduler",
    "flux": "FlowMatchEulerDiscreteScheduler",
}


@pytest.mark.parametrize(("name", "shipped"), SHIPPED.items())
def test_a_card_lists_what_diffusers_calls_compatible(name: str, shipped: str) -> None:
    compatible = {cls.__name__ for cls in getattr(diffusers, shipped)().compatibles}
    listed = load_card(BackboneCard, name, card_roots()).schedulers
    assert set(listed) == compatible - set(text_to_image._UNREPEATABLE)


def test_a_changed_scheduler_keeps_the_noise_levels() -> None:
    shipped = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ddim = schedulers.changed("backbone x", shipped, "DDIMScheduler")
    assert isinstance(ddim, diffusers.DDIMScheduler)
    assert ddim.alphas_cumprod.equal(shipped.alphas_cumprod)


@pytest.mark.parametrize(
    ("shipped", "name", "said"),
    [
        ("PNDMScheduler", "DDIMSchedule", r"backbone x: no scheduler 'DDIMSchedule'.*did you mean 'DDIMScheduler'"),
        ("PNDMScheduler", "FlowMatchEulerDiscreteScheduler", "compatible with PNDMScheduler"),
        ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", r"there are: FlowMatchEulerDiscreteScheduler\)"),
        ("PNDMScheduler", "StableDiffusionPipeline", "no scheduler"),
    ],
)
def test_what_is_not_compatible_is_refused(shipped: str, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        schedulers.changed("backbone x", getattr(diffusers, shipped)(), name)
