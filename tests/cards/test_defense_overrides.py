"""Defenses by names: with other parameters, and on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from benches import bench
from hypothesis import given
from hypothesis import strategies as st

from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.defenses import stacked
from harness.defenses.base import Defense, Pipe
from harness.errors import UserError
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Request
from harness.pipeline.spec import StageSpec
from harness.store.fingerprint import FileHashes

ROOTS = card_roots()
HASHES = FileHashes()
SHAPES = load_card(BackboneCard, "shapes", ROOTS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cards").mkdir()
    bench(tmp_path / "cards", "few", 3)
    return tmp_path / "cards"


def plan(root: Path, *defenses: str) -> Plan:
    request = Request(defenses=defenses, benches=("few",), profile="shapes", regens=("none",), baseline=False)
    return make(request, card_roots(root), root / "data", HASHES)


def images(root: Path, defense: str) -> StageSpec:
    return plan(root, defense).conditions[0].variants[0].images


@given(
    st.dictionaries(
        st.sampled_from(["lam", "erase_scale", "preserve_scale"]), st.floats(0.001, 1e6, allow_nan=False), min_size=1
    )
)
def test_a_name_says_what_was_asked_for_and_reads_back(values: dict[str, float]) -> None:
    asked = "uce:" + ":".join(f"{key}={value!r}" for key, value in values.items())
    chosen = overrides.defense(asked, ROOTS)
    assert overrides.defense(chosen.name, ROOTS).name == chosen.name
    for read in (chosen, overrides.defense(chosen.name, ROOTS)):
        (params,) = read.resolve("shapes", "nudity")
        assert {key: params[key] for key in values} == values


@given(st.lists(st.sampled_from(["uce", "sld-max", "sd-np", "uce:lam=2.5", "rece:reg=1e+5"]), min_size=1, max_size=4))
def test_a_stack_is_its_layers_in_order(names: list[str]) -> None:
    stack = overrides.defense("+".join(names), ROOTS)
    assert [layer.name for layer in stack.layers] == [overrides.defense(n, ROOTS).name for n in names]
    assert overrides.defense(stack.name, ROOTS) == stack


def test_what_is_asked_for_is_over_what_the_card_says_for_the_concept_and_the_edition() -> None:
    plain, changed = overrides.defense("rece", ROOTS), overrides.defense("rece:epochs=7", ROOTS)
    for edition in ("paper", "shapes"):
        (before,), (after,) = plain.resolve(edition, "nudity"), changed.resolve(edition, "nudity")
        assert before["epochs"] != 7
        assert after == before | {"epochs": 7}
    assert (changed.name, plain.name) == ("rece:epochs=7", "rece")


@pytest.mark.parametrize(
    ("text", "value"),
    [("200", 200), ("1e-5", 1e-5), ("0.5", 0.5), ("true", True), ("null", None), ("replace", "replace")],
)
def test_values_are_read_as_cards_read_them(text: str, value: object) -> None:
    (params,) = overrides.defense(f"uce:lam={text}", ROOTS).resolve("paper", "nudity")
    assert params["lam"] == value
    assert type(params["lam"]) is type(value)


def test_other_parameters_make_other_images_and_artefacts_under_their_own_name(root: Path) -> None:
    plain, changed, again = (images(root, d) for d in ("uce", "uce:lam=2.5", "uce:lam=25e-1"))
    assert plain.fingerprint != changed.fingerprint == again.fingerprint
    assert plain.builds[0].fingerprint != changed.builds[0].fingerprint == again.builds[0].fingerprint
    assert changed.worker["layers"][0]["params"]["lam"] == 2.5
    made = plan(root, "uce:lam=25e-1", "uce:lam=2.5")
    assert [c.defense for c in made.conditions] == ["uce:lam=2.5"]
    assert made.conditions[0].shards[0].rows["defense"].to_pylist() == 3 * ["uce:lam=2.5"]


def test_the_card_s_own_value_by_name_is_the_card(root: Path) -> None:
    lam = overrides.defense("uce", ROOTS).resolve("shapes", "nudity")[0]["lam"]
    assert images(root, f"uce:lam={lam}").fingerprint == images(root, "uce").fingerprint


def test_a_stack_needs_every_layer_s_artefact_and_is_neither_of_its_layers(root: Path) -> None:
    alone, stack, other = (images(root, d) for d in ("uce", "uce+sld-max", "sld-max+uce"))
    assert [b.fingerprint for b in stack.builds] == [b.fingerprint for b in alone.builds]  # built for itself, once
    assert len({alone.fingerprint, stack.fingerprint, other.fingerprint, images(root, "sld-max").fingerprint}) == 4
    assert [layer["mechanism"] for layer in stack.worker["layers"]] == ["uce", "sld"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("uce:lamm=1", "--defense 'uce:lamm=1'.*unknown parameter 'lamm'; did you mean 'lam'"),
        ("uce:lam=-1", "--defense 'uce:lam=-1'.*'lam'"),
        ("uce:lam=many", "'lam'.*number"),
        ("uce:lam", "'lam' is no KEY=VALUE"),
        ("uce:lam=1:lam=2", "'lam' is given twice"),
        ("uce:concept=benign", "another one: --concept"),
        ("uce:erase=[star]", "neither a number nor a word"),
        ("uce:weights=/tmp/x.pt", "a card of your own"),
        ("uc+sld-max", "unknown defense 'uc'; did you mean 'uce'"),
        ("uce+", "unknown defense 'uce\\+'"),
        ("uce+rece", "uce and rece each put weights of their own"),
        ("none+uce", "'none' is no defense to be on top of another"),
        ("none:x=1", "unknown parameter 'x'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(root: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(root, name)


class Counting(Defense):
    """Writes what is done with it into a list."""

    def __init__(self, name: str, seen: list[str], arguments: dict[str, object], refuses: bool = False) -> None:
        self.name, self.seen, self.arguments, self.refuses = name, seen, arguments, refuses

    def attach(self, pipe: Pipe) -> None:
        if self.refuses:
            raise UserError(self.name)
        self.seen.append(f"+{self.name}")

    def detach(self, pipe: Pipe) -> None:
        self.seen.append(f"-{self.name}")

    def begin(self, prompts: Sequence[str]) -> dict[str, object]:
        return self.arguments


@given(st.integers(1, 5), st.integers(0, 6))
def test_layers_are_attached_in_order_and_detached_in_reverse_also_after_a_refusal(count: int, refused: int) -> None:
    seen: list[str] = []
    layers = [Counting(str(i), seen, {f"a{i}": i}, refuses=i == refused) for i in range(count)]
    stack = stacked.Stacked(layers)
    if refused < count:
        with pytest.raises(UserError, match=str(refused)):
            stack.attach(None)
    else:
        stack.attach(None)
        assert stack.begin(["a", "b"]) == {f"a{i}": i for i in range(count)}
        stack.detach(None)
        stack.detach(None)  # nothing to undo is no error
    attached = [s[1:] for s in seen if s[0] == "+"]
    assert seen == [f"+{n}" for n in attached] + [f"-{n}" for n in reversed(attached)]
    assert attached == [str(i) for i in range(min(count, refused))]


def test_two_layers_that_set_one_argument_are_refused() -> None:
    stack = stacked.Stacked([Counting(name, [], {"negative_prompt": name}) for name in ("a", "b")])
    with pytest.raises(UserError, match="both set the pipeline's negative_prompt"):
        stack.begin(["a"])


def test_one_layer_is_itself() -> None:
    only = Defense()
    assert stacked.stacked([only]) is only
