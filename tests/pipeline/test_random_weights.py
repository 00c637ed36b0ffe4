"""Cards' models at full size on the meta device: the published numbers, and faults that are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_cards
from harness.cli import app
from harness.errors import UserError
from harness.models import architectures
from harness.pipeline import random_weights

ROOTS = card_roots()


def test_every_shipped_model_of_the_hub_is_known() -> None:
    hub = [card for card in load_cards(BackboneCard, ROOTS) if card.name != "shapes"]
    judges = [card for card in load_cards(JudgeCard, ROOTS) if card.backend == "local" and card.name[:6] != "shapes"]
    assert {card.name for card in (*hub, *judges)} | {"paper"} == set(random_weights.checked_cards())


@pytest.mark.parametrize("name", ["sd-1-4", "sd-2-1", "paper"])
def test_a_card_s_model_has_the_published_size_and_fits(name: str) -> None:
    found = random_weights.check(name, ROOTS)
    assert found["faults"] == []
    if name == "sd-1-4":  # counted by others: 859,520,964 parameters in 686 tensors
        assert found["parts"]["unet"] == {"million_parameters": 859.5, "tensors": 686}
        assert found["weights_gb"] == pytest.approx(4 * (0.8595 + 0.0837 + 0.1231), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({a.cards[0] for a in architectures.known()} - {"sd-1-4", "sd-2-0", "paper"}))
def test_the_large_ones_too(name: str) -> None:
    assert random_weights.check(name, ROOTS)["faults"] == []


def test_too_small_a_memory_figure_and_another_width_are_faults(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines/backbones"
    folder.mkdir(parents=True)
    text = (ROOTS[0] / "pipelines/backbones/sd-1-4.yaml").read_text().replace("memory_gb: 12", "memory_gb: 3")
    (folder / "sd-1-4.yaml").write_text(text)
    (fault,) = random_weights.check("sd-1-4", [tmp_path, *ROOTS])["faults"]
    assert fault == "memory_gb is 3, and the weights alone take 4.3 in float32"
    (part, *_) = architectures.of_card("sd-1-4").parts
    narrower = architectures.build(part, block_out_channels=[32, 64, 64, 64])
    assert "as installed, 859.5 as published" in str(architectures.fault(part, architectures.parameters(narrower)))
    with pytest.raises(UserError, match="did you mean 'sd-1-4'"):
        architectures.of_card("sd-1.4")


def test_the_command_prints_parts_and_faults() -> None:
    done = CliRunner().invoke(app, ["doctor", "sd-1-4", "--random-weights", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cards"][0]["parts"]["unet"]["tensors"] == 686
    with pytest.raises(UserError, match="--random-weights"):
        CliRunner().invoke(app, ["doctor", "sd-1-4"], catch_exceptions=False)
