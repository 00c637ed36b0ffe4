"""Regenerator cards and their variants: what a name says, what is refused, what differs in the shapes world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.cards import regenerator
from harness.cards.base import card_roots
from harness.cards.load import card_names, load_card
from harness.cards.regenerator import Draw, RegeneratorCard
from harness.errors import UserError
from harness.regenerators.variants import Regenerator, choose

ROOTS = card_roots()


def one(spec: str, edition: str = "shapes") -> Regenerator:
    (found,) = choose([spec], edition, ROOTS)
    return found


# Names of variants


@pytest.mark.parametrize(
    ("spec", "variant"),
    [
        ("resafe", "resafe"),
        ("resafe:alpha=0.5:tokens=4", "resafe:alpha=0.5:tokens=4"),
        ("resafe:tokens=4:alpha=0.5", "resafe:alpha=0.5:tokens=4"),  # in the card's order, however it is typed
        ("resafe:alpha=0.7", "resafe"),  # the card's own value
        ("resafe:alpha=.50:lam=1", "resafe:alpha=0.5"),
        ("resafe:tokens=8", "resafe"),  # the edition's own value
        ("resafe:tokens=16", "resafe:tokens=16"),
        ("resafe:nearest=l2:reading=alg1-raw", "resafe:reading=alg1-raw:nearest=l2"),
        ("resafe:backbone=sd-1-4:iterations=20", "resafe:iterations=20:backbone=sd-1-4"),
        ("resafe:defended=true", "resafe:defended=true"),
        ("resafe:ban_concept=yes", "resafe:ban_concept=true"),
        ("resafe:plateau=50", "resafe:plateau=50"),
        ("simple-caption:vlm=qwen2-vl-7b", "simple-caption:vlm=qwen2-vl-7b"),
        ("pez:lam=0", "pez"),
        ("instruct-pix2pix:steps=20", "instruct-pix2pix:steps=20"),
    ],
)
def test_a_variant_says_what_differs_from_its_card_and_nothing_else(spec: str, variant: str) -> None:
    found = one(spec)
    assert found.variant == variant
    assert one(variant).variant == variant


@given(st.permutations(["alpha=0.25", "lam=2", "tokens=3", "iterations=7", "seed=1", "defended=true"]))
def test_the_order_of_changes_does_not_matter(changes: list[str]) -> None:
    assert one(":".join(["resafe", *changes])) == one(
        "resafe:alpha=0.25:lam=2:tokens=3:iterations=7:seed=1:defended=true"
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_values_never_share_a_name(first: float, second: float) -> None:
    """And the name alone says the value: it may be typed again."""
    a, b = one(f"resafe:alpha={first!r}"), one(f"resafe:alpha={second!r}")
    assert (a.variant == b.variant) == (first == second)
    again = one(a.variant)
    assert again.optimise is not None
    assert again.optimise.alpha == first


def test_values_are_those_asked_for() -> None:
    found = one("resafe:alpha=0.5:tokens=4:reading=alg1-unit:backbone=sd-1-4")
    assert found.optimise is not None
    assert (found.optimise.alpha, found.optimise.tokens, found.optimise.reading) == (0.5, 4, "alg1-unit")
    assert found.optimise.iterations == 300
    assert found.draw == Draw(text="optimized_prompt", backbone="sd-1-4")
    assert one("resafe").optimise != found.optimise


def test_the_same_variant_twice_is_one_and_the_order_stays() -> None:
    found = choose(["simple-caption", "resafe:alpha=0.7", "resafe", "pez"], "shapes", ROOTS)
    assert [r.variant for r in found] == ["simple-caption", "resafe", "pez"]


def test_none_is_no_regenerator() -> None:
    assert choose(["none"], "shapes", ROOTS) == []
    assert choose([], "shapes", ROOTS) == []
    with pytest.raises(UserError, match="'none' beside resafe, pez"):
        choose(["resafe", "none", "pez"], "shapes", ROOTS)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resave", "unknown regenerator 'resave'; did you mean 'resafe'"),
        ("resafe:alhpa=0.5", "'alhpa'; did you mean 'alpha'"),
        ("resafe:token=4", "'token'; did you mean 'tokens'"),
        ("simple-caption:alpha=0.5", "'alpha'"),  # it optimises nothing
        ("resafe:steps=20", "'steps'"),  # an editor's
        ("resafe:alpha", "'alpha' is no KEY=VALUE"),
        ("resafe:", "'' is no KEY=VALUE"),
        ("resafe:alpha=much", "alpha: .*should be a number"),
        ("resafe:alpha=1.5", "alpha: .*1 or less"),
        ("resafe:alpha=nan", "alpha: "),
        ("resafe:lam=inf", "lam: .*finite"),
        ("resafe:tokens=0", "tokens: .*greater than 0"),
        ("resafe:tokens=2.5", "tokens: .*whole number"),
        ("resafe:iterations=-1", "iterations: .*greater than 0"),
        ("resafe:nearest=l1", "nearest: .*'cosine'.*'l2'"),
        ("resafe:seed=-1", "seed: "),
        ("resafe:defended=perhaps", "defended: .*true or false"),
        ("resafe:text=safe_caption", "no 'text'"),  # what is drawn, what is banned: a card's own business
        ("resafe:words=nude", "no 'words'"),
        ("pez:alpha=0.5", "alpha above 0 mixes in a caption, and pez makes none"),
        ("pez:ban_concept=true", "ban_concept bans nothing: the card lists no `words`"),
    ],
)
def test_a_wrong_name_key_or_value_is_one_clear_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        one(spec)
    assert "\n" not in str(caught.value)
    assert ":" not in spec or f"--regen {spec!r}" in str(caught.value)


# Editions


@pytest.mark.parametrize("name", ["resafe", "pez", "resafe-image-only", "resafe-text-only"])
def test_the_shapes_world_has_shorter_prompts_and_fewer_steps(name: str) -> None:
    paper, shapes = one(name, "paper").optimise, one(name).optimise
    assert paper is not None
    assert shapes is not None
    assert (paper.tokens, paper.iterations, paper.micro_batch) == (16, 3000, 64)
    assert (shapes.tokens, shapes.iterations, shapes.micro_batch) == (8, 300, 32)
    rest = {"tokens", "iterations", "micro_batch", "words"}
    assert paper.model_dump(exclude=rest) == shapes.model_dump(exclude=rest)


def test_the_paper_s_settings_are_the_cards() -> None:
    """Appendix A.1: AdamW, learning rate 0.5, N = 16, 3,000 iterations; Figure 6: alpha 0.7 beside its ends."""
    alphas = {}
    for name in ("resafe", "resafe-image-only", "resafe-text-only", "pez"):
        found = one(name, "paper").optimise
        assert found is not None
        assert (found.lr, found.weight_decay, found.nearest, found.reading) == (0.5, 0.1, "cosine", "eq4")
        assert (found.seed, found.plateau, found.ban_concept, found.dtype) == (42, None, False, "float32")
        alphas[name] = found.alpha
    assert alphas == {"resafe": 0.7, "resafe-image-only": 0.0, "resafe-text-only": 1.0, "pez": 0.0}


def test_what_the_command_line_asks_for_stands_above_the_edition() -> None:
    found = one("resafe:tokens=5").optimise
    assert found is not None
    assert (found.tokens, found.iterations) == (5, 300)


def test_settings_name_what_a_cell_must_say() -> None:
    assert one("resafe").method() == {"alpha": 0.7, "lam": 1.0, "tokens": 8, "iterations": 300}
    assert one("simple-caption").method() == {}
    assert one("instruct-pix2pix").method() == {}
    asked = one("resafe:plateau=50:defended=true")
    assert asked.deviations()["deviation"] == "stops after 50 iterations without improvement"
    assert asked.method()["drawn by"] == "the defended backbone"
    assert one("resafe:backbone=sd-1-4").method()["drawn by"] == "sd-1-4"
    assert one("resafe").deviations() == {}
    assert one("resafe:keep_safe=true").deviations()["deviation"] == "leaves images that are nearer to the safe caption"


def test_a_key_of_two_sections_is_named_with_the_later_one_s() -> None:
    """A.1 read literally draws with seed 42; the search has a seed of its own."""
    literal = one("resafe:draw.seed=42:guidance=own")
    assert literal.variant == "resafe:draw.seed=42:guidance=own"
    assert literal.draw is not None
    assert (literal.draw.seed, literal.draw.guidance) == (42, "own")
    assert literal.method()["drawing seed"] == 42
    searched = one("resafe:seed=7")
    assert searched.optimise is not None
    assert searched.draw is not None
    assert (searched.optimise.seed, searched.draw.seed) == (7, "row")


def test_words_are_banned_where_the_card_lists_them_and_else_it_is_said() -> None:
    assert one("resafe").banned("nudity") == ()
    assert one("resafe:ban_concept=true").banned("nudity") == ("star", "sparkle", "twinkle")
    assert "naked" in one("resafe:ban_concept=true", "paper").banned("nudity")
    with pytest.raises(UserError, match=r"words of concept 'church', and its card lists some for nudity, violence"):
        one("resafe:ban_concept=true", "paper").banned("church")
    assert one("simple-caption").banned("church") == ()


@pytest.mark.parametrize(
    ("name", "edition", "concept", "admitted"),
    [
        ("resafe", "shapes", "nudity", True), ("resafe", "shapes", "van-gogh", True),
        ("resafe", "shapes", "benign", False), ("resafe", "shapes", "picasso", False),
        ("resafe", "paper", "picasso", True), ("resafe", "paper", "benign", False),
        ("simple-caption", "shapes", "benign", False), ("resafe-image-only", "shapes", "benign", False),
        ("pez", "shapes", "benign", True), ("instruct-pix2pix", "paper", "benign", True),
    ],
)  # fmt: skip
def test_only_what_asks_questions_needs_to_know_the_concept(
    name: str, edition: str, concept: str, admitted: bool
) -> None:
    assert one(name, edition).admits(edition, concept) is admitted


# Cards

PLAIN: dict[str, Any] = {
    "summary": "of a test", "paper": "none", "caption": {}, "optimise": {"alpha": 0.5},
    "draw": {"text": "optimized_prompt"},
}  # fmt: skip


def card(root: Path, changed: dict[str, Any]) -> Regenerator:
    """The card ``mine``: PLAIN with other sections; None takes one away."""
    folder = root / "pipelines/regenerators"
    folder.mkdir(parents=True)
    content = {k: v for k, v in (PLAIN | changed).items() if v is not None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return choose(["mine"], "shapes", [root])[0]


def test_a_whole_card_is_read(tmp_path: Path) -> None:
    found = card(tmp_path, {"shapes": {"optimise": {"tokens": 3}}})
    assert found.optimise is not None
    assert (found.variant, found.optimise.alpha, found.optimise.tokens) == ("mine", 0.5, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimise": None}, "draw.text is 'optimized_prompt', but no section makes it"),
        (
            {"caption": None, "optimise": {"alpha": 0}, "draw": {"text": "safe_caption"}},
            "draw.text is 'safe_caption', but no section makes it",
        ),
        ({"draw": None}, "either a section `draw` or a section `edit`"),
        ({"caption": None}, "optimise.alpha above 0 needs a section `caption`"),
        ({"shapes": {"edit": {"steps": 3}}}, "shapes.edit changes a section that the card does not have"),
        ({"shapes": {"optimise": {"token": 3}}}, "token"),
        ({"shapes": {"optimise": {"tokens": 0}}}, "greater than 0"),
        ({"shapes": {"optimize": {"tokens": 3}}}, "optimize"),
        ({"optimise": {"alpha": 2}}, "alpha"),
        ({"optimise": {"alpha": 0.5, "lamda": 1}}, "lamda"),
        ({"draw": {"text": "optimized_prompt", "backbones": "x"}}, "backbones"),
        ({"embed": {}}, "embed"),
        ({"paper": None}, "paper"),
    ],
)
def test_a_card_that_cannot_work_is_refused_with_its_file(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        card(tmp_path, changed)
    assert "mine.yaml" in str(caught.value)


def test_a_card_that_both_draws_and_edits_is_refused(tmp_path: Path) -> None:
    edit = load_card(RegeneratorCard, "instruct-pix2pix", ROOTS).edit
    assert edit is not None
    with pytest.raises(UserError, match="either a section `draw` or a section `edit`"):
        card(tmp_path, {"edit": edit.model_dump(mode="json")})


@pytest.mark.parametrize("name", card_names(RegeneratorCard, ROOTS))
@pytest.mark.parametrize("edition", ["paper", "shapes"])
def test_every_card_of_the_project_is_whole(name: str, edition: str) -> None:
    found = one(name, edition)
    assert found.variant == name
    assert set(found.card.shapes) <= set(regenerator.SECTIONS)
