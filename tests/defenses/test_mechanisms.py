from __future__ import annotations

import ast
import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.errors import UserError
from harness.models import text_to_image
from harness.pipeline import defense_layers
from harness.store import fingerprint


def test_every_module_with_load_is_a_mechanism_and_no_other() -> None:
    assert {"none", "negative_prompt", "sld", "uce", "rece", "esd"} <= set(defenses.names())
    assert not {"base", "closed_form", "artefact", "formats"} & set(defenses.names())


def test_an_unknown_mechanism_is_answered_with_the_nearest(pipe: Any) -> None:
    for use in (
        lambda: defenses.load("recee", pipe, {}),
        lambda: defenses.build("recee", pipe, {}),
    ):
        with pytest.raises(UserError, match=r"unknown defense mechanism 'recee'; did you mean 'rece'\?"):
            use()


def test_building_where_there_is_nothing_to_build_is_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match="'sld' has nothing to build"):
        defenses.build("sld", pipe, {})


def test_sources_of_a_mechanism_include_those_it_builds_on_and_those_of_subpackages() -> None:
    rece = fingerprint.closure(["harness.defenses.rece"])
    assert {f"harness.defenses.{m}" for m in ("artefact", "base", "closed_form", "formats", "rece", "uce")} <= set(rece)
    assert "harness.defenses.uce" not in fingerprint.closure(["harness.defenses.sld"])
    trained = fingerprint.closure(["harness.defenses.esd"])
    assert {"harness.defenses.training.loop", "harness.defenses.training.losses"} <= set(trained)
    assert "harness.defenses.training.lora" not in trained


def test_local_files_that_parameters_name_are_listed_but_not_hub_ids_or_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert defenses.files({"weights": "/a/b.pt", "preserve": "/c.txt"}) == [Path("/a/b.pt"), Path("/c.txt")]
    assert defenses.files({"preserve": ["", "art"], "start": {"preserve": "/d.txt"}}) == [Path("/d.txt")]
    assert defenses.files({"weights": None}) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    snapshot = tmp_path / f"models--o--r/snapshots/{commit}"
    snapshot.mkdir(parents=True)
    (snapshot / "x.pt").write_bytes(b"weights")
    assert defenses.files({"weights": f"hub:o/r@{commit}/x.pt"}) == []
    with pytest.raises(UserError, match="hf download o/r y.pt"):
        defenses.files({"weights": f"hub:o/r@{commit}/y.pt"})


def card(**content: Any) -> DefenseCard:
    plain = {"name": "mine", "path": Path("mine.yaml"), "root": Path(), "summary": "of a test", "paper": "none"}
    return DefenseCard.model_validate(plain | {"mechanism": "uce", "artefact": True} | content)


STAR = {"nudity": {"erase": ["star"]}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"params": {"lamb": 2.0}, "concepts": STAR}, r"unknown parameter 'lamb'; did you mean 'lam'"),
        ({"concepts": STAR, "shapes": {"params": {"lam": -1}}}, "parameter 'lam': should be greater than 0"),
        ({"concepts": {"nudity": {}}}, "concept nudity: defense uce: parameter 'erase': is required"),
        ({"concepts": {**STAR, "violence": {"erase": [""]}}}, "concept violence: defense uce: parameter 'erase'"),
        ({"concepts": STAR, "params": {"templates": ["a photo"]}}, "parameter 'templates'"),
        ({"concepts": STAR, "params": {"templates": []}}, "parameter 'templates'"),
        ({"concepts": STAR, "params": {"lam": float("inf")}}, "parameter 'lam': should be a finite number"),
        ({"concepts": {"nudity": {"erase": [datetime.date(2020, 1, 1)]}}}, "parameters are numbers, texts, lists and"),
        ({"concepts": STAR, "artefact": False}, "'uce' has something to build .*`artefact: true`"),
        ({"mechanism": "none"}, "'none' has nothing to build .*`artefact: false`"),
        (
            {"mechanism": "none", "artefact": False, "params": {"weights": "esd.pt"}},
            "none: unknown parameter 'weights'",
        ),
        ({"mechanism": "negative_prompt", "artefact": False, "params": {"phrases": "star"}}, "parameter 'phrases'"),
        ({"mechanism": "rece", "concepts": STAR, "params": {"start": {"lamb": 1}}}, "unknown parameter 'lamb'"),
        ({"mechanism": "rece", "concepts": STAR, "params": {"start": {"weights": "uce.pt"}}}, "takes no 'weights'"),
        ({"mechanism": "rece", "concepts": STAR, "params": {"start": {"concept": "art"}}}, "takes no 'concept'"),
    ],
)
def test_a_card_that_its_mechanism_would_refuse_is_refused_before_anything_runs(content: dict, said: str) -> None:
    shapes = load_card(BackboneCard, "shapes", card_roots())
    with pytest.raises(UserError, match=said) as refused:
        defenses.require(card(**content), shapes)
    assert str(refused.value).startswith("mine.yaml")


def test_a_card_of_one_edition_may_leave_the_other_incomplete() -> None:
    shapes = load_card(BackboneCard, "shapes", card_roots())
    defenses.require(card(concepts={"nudity": {}}, shapes={"concepts": STAR}), shapes)
    defenses.require(card(concepts={}, shapes={"concepts": STAR}), shapes)


def test_looking_at_mechanisms_imports_no_model_library() -> None:
    code = (
        "import sys; from harness import defenses; from harness.cards.base import card_roots; "
        "from harness.cards.backbone import BackboneCard; from harness.cards.defense import DefenseCard; "
        "from harness.cards.load import card_names, load_card; roots = card_roots(); "
        "defenses.names(); defenses.files({}); "
        "shapes = load_card(BackboneCard, 'shapes', roots); "
        "[defenses.require(load_card(DefenseCard, name, roots), shapes) for name in card_names(DefenseCard, roots)]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HOLDING = {"pillow", "pydantic", "pydantic_core", "safetensors"}  # they hold what others compute


@pytest.mark.parametrize("mechanism", [m for m in defenses.names() if defenses.artefact_kind(m) is not None])
def test_a_mechanism_names_every_library_that_its_artefact_depends_on(mechanism: str) -> None:
    modules = [m for m in fingerprint.closure([f"harness.defenses.{mechanism}"]) if m.startswith("harness.defenses.")]
    files = [Path(defenses.__file__).parent.joinpath(*m.split(".")[2:]) for m in modules]
    sources = [(f / "__init__.py" if f.is_dir() else f.with_suffix(".py")).read_text() for f in files]
    used = {name for source in sources for name in imported(ast.parse(source))} - sys.stdlib_module_names
    beside = {"pillow" if name == "PIL" else name for name in used} - {"harness", *text_to_image.LIBRARIES, *HOLDING}
    assert beside == set(defenses.libraries(mechanism))


def imported(source: ast.Module) -> set[str]:
    nodes = list(ast.walk(source))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_an_artefact_is_another_with_another_version_of_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_card(DefenseCard, "mace", card_roots())
    resolved = {**card.resolve("shapes", "nudity"), "concept": "nudity"}
    common = {"libraries": {"torch": "2"}}

    def known() -> str | None:
        return defense_layers.layer(card, resolved, common, fingerprint.FileHashes()).fingerprint

    before = known()
    assert before == known()
    monkeypatch.setattr(fingerprint, "_version", lambda name: "0.0.1")
    assert before != known()
