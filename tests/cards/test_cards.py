"""Cards: the ones that ship hold together, and a wrong one says where and what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.cards.backbone import BackboneCard
from harness.cards.base import FOLDERS, Card, Kind, card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.load import KINDS, card_names, load_card
from harness.cards.places import PACKAGE, locate
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.yaml_file import read_yaml
from harness.errors import UserError

REPO = Path(__file__).resolve().parents[2]
ROOTS = [REPO]
SHIPPED = [(kind, name) for kind in KINDS for name in card_names(kind, ROOTS)]

POLICY = """\
summary: unsafe above a half
version: 1
cites: nobody
concept: nudity
scorer: nudenet
rule:
  any_of: [a, b]
  op: ">"
  threshold: 0.5
"""
DEFENSE = """\
summary: a method
paper: somebody
mechanism: method
params: {steps: 3, strength: 1.0}
concepts:
  nudity: {words: [x], strength: 2.0}
shapes:
  params: {steps: 1}
  concepts:
    nudity: {words: [star]}
    van-gogh: {words: [striped]}
"""


def write(root: Path, kind: Kind, name: str, text: str) -> Path:
    path = root / FOLDERS[kind] / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refuses(root: Path, text: str, *parts: str) -> None:
    """Asserts that a policy card with this text is refused on one line that holds every part."""
    write(root, "policy", "brief", text)
    with pytest.raises(UserError) as error:
        load_card(PolicyCard, "brief", [root])
    message = str(error.value)
    assert "\n" not in message
    for part in ("brief.yaml", *parts):
        assert part in message


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_a_shipped_card_loads_under_its_stem(kind: type[Card], name: str) -> None:
    card = load_card(kind, name, ROOTS)
    assert card.name == name == card.path.stem
    assert card.summary
    assert len(card.summary.splitlines()) == 1


def test_every_kind_has_a_folder() -> None:
    assert set(get_args(Kind)) == set(FOLDERS) == {kind.KIND for kind in KINDS}


@pytest.mark.parametrize("name", card_names(ProfileCard, ROOTS))
def test_a_profile_names_cards_that_exist(name: str) -> None:
    profile = load_card(ProfileCard, name, ROOTS)
    load_card(BackboneCard, profile.backbone, ROOTS)
    for concept in profile.concepts:
        for policy in profile.policies(concept):
            card = load_card(PolicyCard, policy, ROOTS)
            assert set(card.scorers) <= set(profile.measures(concept).scorers)


def test_the_shapes_profile_measures_every_concept_of_its_benchmarks() -> None:
    profile = load_card(ProfileCard, "shapes", ROOTS)
    benches = [load_card(BenchmarkCard, n, ROOTS) for n in card_names(BenchmarkCard, ROOTS)]
    asked = {b.concept for b in benches if "shapes" in b.editions}
    assert asked == set(profile.concepts)


@pytest.mark.parametrize("name", card_names(DefenseCard, ROOTS))
def test_a_defense_names_a_module_and_resolves_for_its_concepts(name: str) -> None:
    card = load_card(DefenseCard, name, ROOTS)
    assert (REPO / "harness" / "defenses" / f"{card.mechanism}.py").is_file()
    for concept in card.concepts or {"nudity": {}}:
        assert set(card.params) <= set(card.resolve("paper", concept))


@pytest.mark.parametrize("name", card_names(BenchmarkCard, ROOTS))
def test_a_benchmark_says_what_identifies_its_file(name: str) -> None:
    card = load_card(BenchmarkCard, name, ROOTS)
    for edition in card.editions.values():
        known = [k.sha256 for k in edition.known]
        assert len(set(known)) == len(known)
        assert edition.sha256 not in known
        if edition.source.startswith("https:"):
            assert edition.sha256, "an open file must be pinned"
        if edition.gated:
            assert edition.access


def test_the_papers_denominators_are_kept() -> None:
    rows = {
        n: load_card(BenchmarkCard, n, ROOTS).editions["paper"].rows
        for n in card_names(BenchmarkCard, ROOTS)
        if n not in ("benign", "direct")  # of the embedded world only
    }
    assert rows == {
        "ring-a-bell-k77": 95,
        "ring-a-bell-k38": 95,
        "ring-a-bell-k16": 95,
        "ring-a-bell-violence-eta5-k77": 250,
        "ring-a-bell-violence-eta5.5-k38": 250,
        "ring-a-bell-violence-eta5.5-k77": 250,
        "mma-diffusion": 1000,
        "p4d": 272,
        "p4d-n": 151,
        "unlearndiffatk": 142,
        "i2p": 4703,
        "i2p-official": 4703,
        "saferedir-nudity-forget": 250,
        "saferedir-nudity-retain": 250,
        "saferedir-van-gogh-forget": 250,
        "saferedir-van-gogh-retain": 250,
        "saferedir-church-forget": 50,
        "saferedir-church-retain": 300,
        "van-gogh": 50,
        "picasso": 50,
        "coco-30k": 30000,
    }


def test_importing_cards_loads_no_heavy_library() -> None:
    code = "import sys, harness.cards; print(*{'torch','ray','pyarrow','numpy','diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == ""


def test_a_card_is_frozen(tmp_path: Path) -> None:
    write(tmp_path, "policy", "brief", POLICY)
    card = load_card(PolicyCard, "brief", [tmp_path])
    with pytest.raises(ValidationError) as refused:
        card.version = 2  # type: ignore[misc]
    assert refused.value.errors()[0]["type"] == "frozen_instance"


def test_a_card_dumps_alike_wherever_it_lies(tmp_path: Path) -> None:
    dumps = []
    for folder in ("one", "two"):
        write(tmp_path / folder, "policy", "brief", POLICY)
        dumps.append(load_card(PolicyCard, "brief", [tmp_path / folder]).model_dump(mode="json"))
    assert dumps[0] == dumps[1]


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    refuses(tmp_path, POLICY + "scorrer: q16\n", ":10:", "unknown key 'scorrer'", "did you mean 'scorer'?")


def test_an_unknown_inner_key_is_refused_with_the_keys_of_its_place(tmp_path: Path) -> None:
    refuses(tmp_path, POLICY.replace("threshold", "treshold"), ":9:", "'rule.treshold'", "did you mean 'threshold'?")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    refuses(tmp_path, POLICY.replace("version: 1\n", ""), "missing key 'version'")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("0.5", "high", (":9:", "rule.threshold: should be a number, got 'high'")),
        ("0.5", ".nan", (":9:", "rule.threshold")),
        ('">"', '"<"', (":8:", "rule.op: should be '>'", "'>='", ", got '<'")),
        ("version: 1", "version: yes", (":2:", "version: should be a whole number, got True")),
        ("version: 1", "version: 0", (":2:", "greater than 0")),
        ("[a, b]", "[]", (":7:", "rule.any_of")),
        ("scorer: nudenet", "scorer: ../evil", (":5:", "scorer")),
    ],
)
def test_a_bad_value_is_refused_with_line_key_and_value(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    refuses(tmp_path, POLICY.replace(old, new), *parts)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, POLICY + "version: 2\n", ":10:", "'version' is given twice (first in line 2)")


def test_a_key_given_twice_inside_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, POLICY + "  op: '>='\n", ":10:", "'op' is given twice (first in line 8)")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("summary: [1", ":2: not YAML"),
        ("a: b: c", ":1: not YAML"),
        ("", ":1: a card is a mapping"),
        ("- a\n- b\n", ":1: a card is a mapping"),
        ("summary: !!python/name:os.system x\n", ":1: cannot read the value"),
        ("summary: !!binary aGVsbG8=\n", ":1: cannot read the value 'aGVsbG8='"),
        (f"version: {'9' * 5000}\n", ":1: cannot read the value '9999"),
        ("summary: &all [*all]\n", "a part of it is an alias of the whole"),
        (f"summary: {'[' * 3000}{']' * 3000}\n", "nested too deeply (more than 50 levels)"),
        (f"{'- ' * 3000}\n", "nested too deeply"),
        (POLICY + "name: other\n", ":10: unknown key 'name'"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, text: str, part: str) -> None:
    refuses(tmp_path, text, part)


def test_a_card_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "policy", "brief", "").write_bytes(b"summary: caf\xe9\n")
    with pytest.raises(UserError, match=r"brief\.yaml: not UTF-8"):
        load_card(PolicyCard, "brief", [tmp_path])


def test_an_unknown_name_shows_the_nearest_and_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "policy", "brief", POLICY)
    with pytest.raises(UserError, match=r"unknown policy 'breif'; did you mean 'brief'\?.*pipelines/policies"):
        load_card(PolicyCard, "breif", [tmp_path])


def test_a_name_twice_in_one_root_names_both_files(tmp_path: Path) -> None:
    write(tmp_path, "policy", "brief", POLICY)
    write(tmp_path, "policy", "sub/brief", POLICY)
    with pytest.raises(
        UserError, match=r"two cards are called 'brief'.*policies/brief\.yaml.*policies/sub/brief\.yaml"
    ):
        card_names(PolicyCard, [tmp_path])


@pytest.mark.parametrize("name", ["all", "Upper", "with space", "a,b"])
def test_a_name_that_cannot_be_typed_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "policy", name, POLICY)
    with pytest.raises(UserError, match="a card's name"):
        card_names(PolicyCard, [tmp_path])


def test_the_first_root_that_has_a_name_wins(tmp_path: Path) -> None:
    write(tmp_path / "mine", "policy", "brief", POLICY.replace("0.5", "0.9"))
    write(tmp_path / "theirs", "policy", "brief", POLICY)
    write(tmp_path / "theirs", "policy", "other", POLICY)
    both = [tmp_path / "mine", tmp_path / "theirs"]
    assert load_card(PolicyCard, "brief", both).rule.threshold == 0.9
    assert card_names(PolicyCard, both) == ["brief", "other"]


def test_own_cards_come_before_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, "policy", "brief", POLICY)
    found = card_roots(tmp_path)
    assert found[0] == tmp_path.resolve()
    assert found[1:] == card_roots(None)


@pytest.mark.parametrize("folder", [".", "absent"])
def test_a_folder_without_cards_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match="--cards"):
        card_roots(tmp_path / folder)


def test_a_date_stays_text_and_an_exponent_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("day: 2024-11-01\nrate: 1e-3\nscale: 2.5E+1\nhash: '1e10'\n")
    content, lines = read_yaml(path)
    assert content == {"day": "2024-11-01", "rate": 0.001, "scale": 25.0, "hash": "1e10"}
    assert lines[("rate",)] == 2


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), inner),
            max_leaves=8,
        ),
        min_size=1,
    )
)
def test_reading_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(yaml.safe_dump(content, default_style='"'))
    assert read_yaml(path)[0] == content


def test_parameters_of_the_concept_lie_over_the_common_ones(tmp_path: Path) -> None:
    write(tmp_path, "defense", "method", DEFENSE)
    card = load_card(DefenseCard, "method", [tmp_path])
    assert card.resolve("paper", "nudity") == {"steps": 3, "strength": 2.0, "words": ["x"]}


def test_the_shapes_overlay_lies_over_both(tmp_path: Path) -> None:
    write(tmp_path, "defense", "method", DEFENSE)
    card = load_card(DefenseCard, "method", [tmp_path])
    assert card.resolve("shapes", "nudity") == {"steps": 1, "strength": 2.0, "words": ["star"]}
    assert card.resolve("shapes", "van-gogh") == {"steps": 1, "strength": 1.0, "words": ["striped"]}


@pytest.mark.parametrize("name", card_names(DefenseCard, ROOTS))
def test_what_the_shapes_overlay_says_of_all_concepts_lies_over_what_the_card_says_of_one(name: str) -> None:
    card = load_card(DefenseCard, name, ROOTS)
    for concept, own in (card.shapes.concepts if card.shapes is not None else {}).items():
        assert card.shapes is not None
        expected = {**card.shapes.params, **own}
        resolved = card.resolve("shapes", concept)
        assert {key: resolved[key] for key in expected} == expected


def test_a_concept_that_a_defense_lacks_names_those_it_has(tmp_path: Path) -> None:
    write(tmp_path, "defense", "method", DEFENSE)
    card = load_card(DefenseCard, "method", [tmp_path])
    with pytest.raises(UserError, match=r"'method' is not declared for concept 'van-gogh' \(it has: nudity\)"):
        card.resolve("paper", "van-gogh")


def test_a_defense_without_concepts_takes_any(tmp_path: Path) -> None:
    write(tmp_path, "defense", "method", "summary: nothing\npaper: none\nmechanism: none\nparams: {a: 1}\n")
    card = load_card(DefenseCard, "method", [tmp_path])
    assert card.resolve("paper", "anything") == {"a": 1}


def test_resolving_does_not_change_the_card(tmp_path: Path) -> None:
    write(tmp_path, "defense", "method", DEFENSE)
    card = load_card(DefenseCard, "method", [tmp_path])
    card.resolve("shapes", "nudity")["steps"] = 99
    assert card.resolve("shapes", "nudity")["steps"] == 1


def test_scorers_that_always_run_come_first_and_once() -> None:
    profile = load_card(ProfileCard, "shapes", ROOTS)
    measured = profile.measures("nudity").scorers
    assert measured[: len(profile.scorers)] == profile.scorers
    assert len(set(measured)) == len(measured)


def test_an_unknown_concept_names_those_of_the_profile() -> None:
    profile = load_card(ProfileCard, "shapes", ROOTS)
    with pytest.raises(UserError, match=r"does not know concept 'nudty'.*did you mean 'nudity'\?"):
        profile.measures("nudty")


def test_a_benchmark_without_an_edition_says_which_it_has() -> None:
    with pytest.raises(UserError, match=r"'picasso' has no 'shapes' edition \(it has: paper\)"):
        load_card(BenchmarkCard, "picasso", ROOTS).edition("shapes")


def test_an_unpinned_hub_backbone_is_refused(tmp_path: Path) -> None:
    text = (REPO / "pipelines/backbones/sd-1-4.yaml").read_text().replace("revision", "# revision")
    write(tmp_path, "backbone", "loose", text)
    with pytest.raises(UserError, match="a hub source needs its revision"):
        load_card(BackboneCard, "loose", [tmp_path])


@pytest.mark.parametrize(
    ("given", "changed", "part"),
    [("concept: picasso", "concept: ''", ":2: concept: "), ("editions:", "editions: {}\nmore:", ":4: editions: ")],
)
def test_a_benchmark_without_a_concept_or_an_edition_is_refused(
    tmp_path: Path, given: str, changed: str, part: str
) -> None:
    text = (REPO / "datasets/picasso.yaml").read_text().replace(given, changed, 1)
    write(tmp_path, "dataset", "loose", text)
    with pytest.raises(UserError, match=f"loose\\.yaml{part}.*should have 1 or more"):
        load_card(BenchmarkCard, "loose", [tmp_path])


@pytest.mark.parametrize("source", ["http://x/y.csv", "hub:owner/repo/file.csv", "file.csv", "user:me"])
def test_a_source_of_no_known_form_is_refused(tmp_path: Path, source: str) -> None:
    text = (REPO / "datasets/picasso.yaml").read_text().replace("source: user", f"source: '{source}'")
    write(tmp_path, "dataset", "loose", text)
    with pytest.raises(UserError, match=r"loose\.yaml:7: editions\.paper\.source: must be"):
        load_card(BenchmarkCard, "loose", [tmp_path])


def test_a_packaged_source_lies_in_the_package_or_beside_the_card(tmp_path: Path) -> None:
    assert locate("package:harness/shapes/weights/sd", tmp_path) == PACKAGE / "shapes/weights/sd"
    assert locate("package:datasets/shapes/x.csv", tmp_path) == tmp_path / "datasets/shapes/x.csv"
