"""The shipped cards of SAFREE and SafeRedir."""

from __future__ import annotations

from typing import Any

import pytest

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.defenses import prompt_pairs, saferedir
from harness.defenses.base import checked, parse

ROOTS = card_roots()


def resolve(name: str, edition: str, concept: str) -> dict[str, Any]:
    return load_card(DefenseCard, name, ROOTS).resolve(edition, concept) | {"concept": concept}


def test_safree_has_the_published_settings() -> None:
    nudity, artist = (resolve("safree", "paper", concept) for concept in ("nudity", "van-gogh"))
    keys = ("alpha", "mask", "last_step", "midpoint", "sharpness", "skip_scales")
    assert [nudity[k] for k in keys] == [0.01, 0, 10, 5.333, 2.5, [0.9, 0.2]]
    assert (artist["midpoint"], artist["sharpness"], artist["phrases"]) == (5.5, 3.5, ["Van Gogh"])
    assert nudity["phrases"] == resolve("sd-np", "paper", "nudity")["phrases"]  # the same list of the same script
    assert len(resolve("safree", "paper", "violence")["phrases"]) == 13


@pytest.mark.parametrize("edition", ["paper", "shapes"])
@pytest.mark.parametrize("concept", ["nudity", "violence", "van-gogh"])
def test_safree_attaches_for_every_concept(roomy: Any, edition: str, concept: str) -> None:
    before = dict(vars(roomy.unet))
    defense = defenses.load("safree", roomy, resolve("safree", edition, concept) | {"negative_prompt": False})
    defense.attach(roomy)
    defense.detach(roomy)
    assert dict(vars(roomy.unet)) == before


def test_which_backbones_they_change() -> None:
    works = {
        name: [b for b in ("shapes", "sd-1-4", "sdxl", "sd3", "flux") if defenses.works(card, backbone(b))]
        for name in ("safree", "saferedir")
        for card in [load_card(DefenseCard, name, ROOTS)]
    }
    assert works == {"safree": ["shapes", "sd-1-4", "sdxl", "sd3"], "saferedir": ["shapes", "sd-1-4"]}


def backbone(name: str) -> BackboneCard:
    return load_card(BackboneCard, name, ROOTS)


@pytest.mark.parametrize(
    ("edition", "concept"),
    [("paper", c) for c in ("nudity", "van-gogh", "church")]
    + [("shapes", c) for c in ("nudity", "violence", "van-gogh")],
)
def test_every_prompt_that_saferedir_learns_from_passes_the_guard(edition: str, concept: str) -> None:
    own = parse(saferedir.SaferedirParams, resolve("saferedir", edition, concept))
    pairs = list(prompt_pairs.made(own.templates, own.fill, (own.unsafe, own.safe), 400, 5))
    kept = [text for (text,) in prompt_pairs.made(own.retain, own.fill, (("",),), 400, 5)]
    for text in [t for pair in pairs for t in pair] + kept:
        assert checked(text, concept) == text
    assert all(any(word in unsafe for word in own.unsafe) for unsafe, _ in pairs)
    assert not any(word in text for _, text in pairs for word in own.unsafe)
    assert not any(word in text.split() for text in kept for word in own.unsafe)


def test_on_shapes_a_third_word_is_left_to_generalisation() -> None:
    for concept, word in (("nudity", "twinkle"), ("violence", "loop")):
        assert word not in resolve("saferedir", "shapes", concept)["unsafe"]
        assert not any(word in phrase for phrase in resolve("safree", "shapes", concept)["phrases"])
