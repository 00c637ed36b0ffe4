"""What installed packages bring is found by entry points; clashes and broken ones are named and hinder nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from outside_package import unpacked
from typer.testing import CliRunner

from harness import defenses, scorers
from harness.cards import plugins
from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.load import card_names, load_card, load_cards
from harness.cli import app
from harness.errors import UserError
from harness.pipeline import defense_layers
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Request
from harness.pipeline.worker_code import difference, identity
from harness.store import fingerprint
from harness.store.fingerprint import FileHashes

MECHANISM = """from harness.defenses.base import Defense, Params, parse
{imported}
class PlainParams(Params):
    strength: float = 1.0

PARAMS = PlainParams

def load(pipe, params, artefact):
    parse(PlainParams, params)
    return Defense()
"""
SCORER = '''"""Of a stranger."""
import pyarrow as pa
from harness.scorers.batching import in_micro_batches
COLUMNS = {"NAME_mean": pa.float32()}
PAIR, LIBRARIES, MICRO_BATCH = False, ("numpy",), 1
def weights(params):
    return []
def load(params):
    return lambda images: in_micro_batches("NAME", images, lambda image: image.mean(), rows, 1)
def rows(batch):
    return [{"NAME_mean": value} for value in batch]
'''
REGENERATOR = """summary: of a stranger
paper: none
caption: {}
draw: {text: safe_caption, seed: 7}
"""
CARD = """summary: of a stranger
paper: none
mechanism: MECHANISM
"""
Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Install packages of a name, each in a folder of its own; their modules are forgotten afterwards."""
    known = set(sys.modules)

    def put(package: str, points: dict[str, dict[str, str]], files: dict[str, str], version: str = "1.0") -> Path:
        folder = unpacked(tmp_path / package, package, points, files, version)
        monkeypatch.syspath_prepend(folder)
        return folder

    yield put
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def whole(site: Site, name: str = "strange", **more: str) -> Path:
    """A package with a mechanism, a scorer and a card."""
    files = {
        f"{name}/__init__.py": "", f"{name}/defense.py": MECHANISM.format(imported=""),
        f"{name}/scorer.py": SCORER.replace("NAME", name),
        f"{name}/pipelines/defenses/{name}.yaml": CARD.replace("MECHANISM", name),
        f"{name}/pipelines/regenerators/{name}-caption.yaml": REGENERATOR,
        **more,
    }  # fmt: skip
    points = {
        "defenses": {name: f"{name}.defense"}, "scorers": {name: f"{name}.scorer"}, "cards": {name: name},
    }  # fmt: skip
    return site(name, points, files)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def plan(**asked: Any) -> Plan:
    request = Request(benches=("direct",), profile="shapes", limit=2, regens=(), **asked)
    return make(request, card_roots(), Path("data"), FileHashes())


def test_a_mechanism_a_scorer_and_a_card_of_a_package_are_found_like_our_own(site: Site) -> None:
    folder = whole(site)
    assert card_roots()[1:] == [folder / "strange"]
    card = load_card(DefenseCard, "strange", card_roots())
    assert defenses.module_name(card.mechanism) == "strange.defense"
    assert "strange" in defenses.names()
    assert isinstance(defenses.load("strange", None, {"strength": 0.5}), sys.modules["harness.defenses.base"].Defense)
    with pytest.raises(UserError, match="unknown parameter 'strenth'; did you mean 'strength'"):
        defenses.load("strange", None, {"strenth": 0.5})
    assert "strange" in scorers.names()
    assert scorers.libraries("strange") == ("strange", "numpy")
    scored = scorers.load("strange")([np.full((4, 4, 3), 7, np.uint8), np.zeros((2, 2), np.uint8)])
    assert scored == {"strange_mean": [7.0, None], "strange_error": [None, "not-an-image"]}


def test_list_and_describe_say_who_brings_it(site: Site) -> None:
    folder = whole(site)
    listed = json.loads(call("list", "--json").stdout)
    brought = {"defenses": "strange", "scorers": "strange", "regenerators": "strange-caption"}
    assert listed["provided_by"] == {kind: {name: "strange 1.0"} for kind, name in brought.items()}
    assert "[strange 1.0]" in call("list", "defenses").stdout
    assert "[strange 1.0]" in call("list", "scorers").stdout
    about = json.loads(call("describe", "strange", "--json").stdout)["found"]
    assert {a["kind"]: a["file"] for a in about}["scorer"] == str(folder / "strange/scorer.py")
    assert next(a for a in about if a["kind"] == "scorer")["provided_by"] == "strange 1.0"


def test_nothing_outside_says_nothing() -> None:
    assert "provided_by" not in json.loads(call("list", "--json").stdout)


def test_the_packages_code_and_version_are_in_the_fingerprints(site: Site) -> None:
    folder = whole(site, **{"strange/maths.py": "LEVEL = 1\n"})
    text = MECHANISM.format(imported="from strange.maths import LEVEL\nfrom harness.defenses.closed_form import edit\n")
    (folder / "strange/defense.py").write_text(text)
    closure = fingerprint.closure([defenses.module_name("strange")])
    assert {"strange.defense", "strange.maths", "harness.defenses.base", "harness.defenses.closed_form"} <= set(closure)
    asked = {"defenses": ("strange",), "extra_scorers": ("strange",)}
    (before,) = (c for c in plan(**asked).conditions if c.defense == "strange")
    assert before.stages[0].key["libraries"]["strange"] == "1.0"
    score = next(s for s in before.stages if s.stage == "score-strange")
    assert score.key["libraries"]["strange"] == "1.0"
    assert {s.packages for s in before.stages} == {(), ("strange",)}
    (folder / "strange/maths.py").write_text("LEVEL = 2\n")
    (after,) = (c for c in plan(**asked).conditions if c.defense == "strange")
    assert after.stages[0].fingerprint != before.stages[0].fingerprint
    assert after.stages[0].key["code"] != before.stages[0].key["code"]


def test_our_own_keys_name_no_package() -> None:
    (condition,) = plan(defenses=("none",)).conditions
    assert {s.packages for s in condition.stages} == {()}
    card = load_card(DefenseCard, "uce", card_roots())
    assert defense_layers.versions(card) == {}


def test_workers_are_asked_for_the_packages_sources_too(site: Site) -> None:
    folder = whole(site)
    own = identity(["harness", "strange"], ["strange"])
    assert own["sources"]["strange"]["where"] == str(folder / "strange")
    (folder / "strange/defense.py").write_text("")
    told = difference(own, identity(["harness", "strange"], ["strange"]))
    assert told.startswith("strange ")
    absent = {**own, "sources": {**own["sources"], "strange": {"digest": "not installed", "where": None}}}
    assert "strange not installed instead of" in difference(own, absent)


@pytest.mark.parametrize("group", ["defenses", "scorers"])
def test_two_packages_with_one_name_are_refused_with_both_named_where_it_is_used(site: Site, group: str) -> None:
    places = [whole(site), site("stranger", {group: {"strange": "stranger"}}, {"stranger.py": ""})]
    room: Any = {"defenses": defenses, "scorers": scorers}[group]
    with pytest.raises(UserError, match="'strange' is brought by") as refused:
        room.load("strange", *([None, {}] if group == "defenses" else []))
    for package, place in zip(("strange", "stranger"), places, strict=True):
        assert f"{package} 1.0 in {place}" in str(refused.value)
    assert "sld" in defenses.names()
    assert "nudenet" in scorers.names()
    assert defenses.module_name("uce") == "harness.defenses.uce"
    listed = call("list", group)
    assert (listed.exit_code, "'strange' is brought by" in listed.stderr) == (0, True)


def test_a_package_with_a_name_of_ours_is_refused_with_both_places(site: Site) -> None:
    place = site("stranger", {"defenses": {"uce": "stranger"}, "scorers": {"ssim": "stranger"}}, {"stranger.py": ""})
    for room, name in ((defenses, "uce"), (scorers, "ssim")):
        with pytest.raises(UserError, match=f"brought by harness itself.*{name}.py.* and by stranger 1.0 in {place}"):
            room.module_name(name)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="'uce' is brought by harness itself"):
        plan(defenses=("uce",))
    assert len(plan(defenses=("rece",)).conditions) == 2
    assert call("list").exit_code == 0


def test_cards_with_one_name_are_refused_with_both_files_and_an_asked_folder_wins(site: Site, tmp_path: Path) -> None:
    whole(site)
    taken = {"stranger/pipelines/defenses/strange.yaml": CARD.replace("MECHANISM", "none")}
    taken["stranger/pipelines/defenses/sld-max.yaml"] = CARD.replace("MECHANISM", "none")
    taken["stranger/__init__.py"] = ""
    place = site("stranger", {"cards": {"stranger": "stranger"}}, taken)
    with pytest.raises(UserError, match="'strange' is brought by ") as refused:
        load_card(DefenseCard, "strange", card_roots())
    assert "strange 1.0 (" in str(refused.value)
    assert "stranger 1.0 (" in str(refused.value)
    with pytest.raises(UserError, match="'sld-max' is brought by harness itself") as refused:
        load_card(DefenseCard, "sld-max", card_roots())
    assert str(place / "stranger/pipelines/defenses/sld-max.yaml") in str(refused.value)
    listed = call("list", "defenses")
    assert (listed.exit_code, listed.stderr.count("is brought by")) == (0, 2)
    mine = tmp_path / "mine/pipelines/defenses"
    mine.mkdir(parents=True)
    (mine / "sld-max.yaml").write_text(CARD.replace("MECHANISM", "none"))
    assert load_card(DefenseCard, "sld-max", card_roots(tmp_path / "mine")).path == mine / "sld-max.yaml"


@pytest.mark.parametrize(
    ("target", "content", "said"),
    [
        ("strange.scorer", "import no_such_library\n", "cannot be imported: ModuleNotFoundError: .*no_such_library"),
        ("strange.scorer", "raise SystemExit(3)\n", "cannot be imported: SystemExit: 3"),
        ("strange.scorer", "def broken(:\n", "cannot be imported: .*SyntaxError"),
        ("strange.elsewhere", "", "cannot be imported: "),
        ("strange.scorer", "", "lacks (COLUMNS|the function `load`)"),
        ("strange scorer!", "", "names no module"),
    ],
)
def test_a_broken_package_is_named_and_hinders_no_other_command(
    site: Site, target: str, content: str, said: str
) -> None:
    points = {"defenses": {"strange": target}, "scorers": {"strange": target}}
    site("strange-things", points, {"strange/__init__.py": "", "strange/scorer.py": content})
    for use in (lambda: defenses.load("strange", None, {}), lambda: scorers.columns("strange")):
        with pytest.raises(UserError, match=f"'strange' of strange-things 1.0 in .*{said}"):
            use()
    assert "strange" not in scorers.names()
    for kind in ("defenses", "scorers"):
        listed = call("list", kind)
        assert listed.exit_code == 0
        assert "strange-things 1.0" in listed.stderr


def test_a_package_that_cannot_be_imported_hinders_neither_describing_nor_planning(site: Site) -> None:
    points = {"defenses": {"strange": "strange"}, "scorers": {"strange": "strange"}}
    site("strange", points, {"strange.py": "import no_such_library\n"})
    assert call("describe", "rece").exit_code == 0
    assert len(plan(defenses=("sld-max",)).conditions) == 2


def test_a_mechanism_with_nothing_to_load_is_named(site: Site) -> None:
    site("strange", {"defenses": {"strange": "strange"}}, {"strange.py": "ARTEFACT = 'pickle'\nNEEDS = str(1)\n"})
    with pytest.raises(UserError, match="'strange' of strange 1.0 in .* lacks the function `load`"):
        defenses.load("strange", None, {})
    with pytest.raises(UserError, match="ARTEFACT is 'pickle', not one of unet-delta"):
        defenses.artefact_kind("strange")


def test_a_malformed_card_or_folder_of_a_package_hinders_no_other(site: Site) -> None:
    bad = "summary: [\n"
    files = {
        "strange/__init__.py": "", "strange/pipelines/defenses/odd.yaml": bad,
        "strange/datasets/Odd Name.yaml": "", "strange/datasets/fine.yaml": "",
    }  # fmt: skip
    site("strange", {"cards": {"strange": "strange", "gone": "strange.nowhere"}}, files)
    roots = card_roots()
    with pytest.raises(UserError, match="odd.yaml"):
        load_card(DefenseCard, "odd", roots)
    assert "fine" not in card_names(BenchmarkCard, roots)
    assert {card.name for card in load_cards(DefenseCard, roots)} >= {"uce", "none"}
    listed = call("list")
    assert listed.exit_code == 0
    for said in ("odd.yaml", "Odd Name.yaml", "card folder 'gone' of strange 1.0"):
        assert said in listed.stderr


def test_names_that_no_card_could_say_are_refused(site: Site) -> None:
    site("strange", {"scorers": {"Strange-One": "strange"}}, {"strange.py": ""})
    with pytest.raises(UserError, match="'Strange-One' of strange 1.0 .* made of a-z"):
        plugins.chosen("scorers", "Strange-One")


def test_a_package_of_one_file_takes_no_neighbour_into_its_closure(site: Site) -> None:
    folder = site("strange", {"scorers": {"strange": "strange"}}, {"strange.py": SCORER.replace("NAME", "strange")})
    (folder / "pyarrow.py").write_text("")
    assert fingerprint.source_file("strange.pyarrow") is None
    assert fingerprint.closure(["strange"])[-1] == "strange"


def test_a_package_without_an_init_is_read_too(site: Site) -> None:
    folder = site("strange", {}, {"spaced/inner/maths.py": "LEVEL = 1\n"})
    assert fingerprint.source_file("spaced.inner.maths") == folder / "spaced/inner/maths.py"
