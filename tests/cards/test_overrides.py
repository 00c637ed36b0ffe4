"""Names with other values: what a name may change, what it then is called, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cards import overrides
from harness.errors import UserError

ROOTS = [Path(__file__).resolve().parents[2]]


def test_a_plain_name_is_the_card_and_so_is_one_that_asks_for_the_cards_own_values() -> None:
    plain = overrides.backbone("sd-1-4", ROOTS)
    assert overrides.backbone(f"sd-1-4:guidance={plain.guidance}:steps={plain.steps}", ROOTS) == plain


def test_what_differs_is_part_of_the_name_in_one_order() -> None:
    one, other = (
        overrides.backbone(f"sd-1-4:{keys}", ROOTS) for keys in ("steps=25:guidance=0.1", "guidance=.1:steps=25")
    )
    assert one == other
    assert (one.name, one.steps, one.guidance) == ("sd-1-4:steps=25:guidance=0.1", 25, 0.1)


def test_flux_takes_a_true_guidance_and_a_length_of_its_text() -> None:
    card = overrides.backbone("flux:true_cfg=4:max_sequence_length=256", ROOTS)
    assert (card.true_cfg, card.max_sequence_length) == (4.0, 256)
    assert card.name == "flux:true_cfg=4:max_sequence_length=256"
    assert "negative_prompt" in card.offers
    assert overrides.backbone("sd3:max_sequence_length=77", ROOTS).max_sequence_length == 77


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("sd-1-5x", "unknown backbone 'sd-1-5x'; did you mean"),
        ("sd-1-4:steps", "'steps' is no KEY=VALUE"),
        ("sd-1-4:", "'' is no KEY=VALUE"),
        ("sd-1-4:steps=1:steps=2", "'steps' is given twice"),
        ("sd-1-4:step=1", "no 'step'; did you mean 'steps'?"),
        ("sd-1-4:source=x", "no 'source'"),
        ("sd-1-4:steps=0", "steps: should be greater than 0"),
        ("sd-1-4:steps=many", "steps: should be a whole number"),
        ("sd-1-4:guidance=nan", "guidance: should be a finite number"),
        ("sd-1-4:dtype=float64", "dtype: should be"),
        ("sd-1-4:scheduler=DDIMSchedular", "no scheduler 'DDIMSchedular'; did you mean"),
        ("sd3:scheduler=DDIMScheduler", "no scheduler 'DDIMScheduler' (there are: FlowMatchEulerDiscreteScheduler)"),
        ("sd-1-4:true_cfg=2", "no 'true_cfg'"),
        ("sd-1-4:max_sequence_length=77", "no 'max_sequence_length'"),
        ("sd3:true_cfg=2", "no 'true_cfg'"),
        ("flux:true_cfg=0.5", "true_cfg: should be 1 or more"),
    ],
)
def test_what_a_name_cannot_say_is_refused_on_one_line(spec: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        overrides.backbone(spec, ROOTS)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
