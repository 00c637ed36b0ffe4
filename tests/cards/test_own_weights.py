"""`source: PATH` in cards of every kind: seen from the card, known by its files, and refused with what is expected."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from harness.cards.backbone import BackboneCard
from harness.cards.base import FOLDERS, Card, card_roots
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cards.places import PACKAGE, absolute, is_path, placeless
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.errors import UserError
from harness.models import clip, vision_language, weights
from harness.store.fingerprint import FileHashes

WEIGHTS = PACKAGE / "shapes/weights"
SHIPPED = card_roots()[0]


def put(root: Path, kind: type[Card], shipped: str, name: str, **changed: object) -> Card:
    """A shipped card with other values, in the test's own root, read."""
    content = yaml.safe_load((SHIPPED / FOLDERS[kind.KIND] / f"{shipped}.yaml").read_text())
    for key, value in changed.items():
        inside, _, last = key.rpartition("__")
        holder = content[inside] if inside else content
        holder[last] = value
    path = root / FOLDERS[kind.KIND] / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return load_card(kind, name, [root, SHIPPED])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of cards whose models lie in ``models`` beside it."""
    for name in ("sd", "captioner", "clip"):
        shutil.copytree(WEIGHTS / name, tmp_path / "models" / name)
    return tmp_path / "cards"


@pytest.mark.parametrize(
    ("kind", "shipped", "key", "place"),
    [
        (BackboneCard, "shapes", "source", "sd"),
        (JudgeCard, "shapes-captioner", "source", "captioner"),
        (ProfileCard, "shapes", "clip__source", "clip"),
        (RegeneratorCard, "instruct-pix2pix", "edit__source", "sd"),
    ],
)
def test_a_source_is_seen_from_its_card_or_from_home_or_absolute(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Card], shipped: str, key: str, place: str
) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    there = root.parent / "models" / place
    references = [
        put(root, kind, shipped, name, **{key: source}).weights()[0]
        for name, source in (("a", f"../../../models/{place}"), ("b", f"~/models/{place}"), ("c", str(there)))
    ]
    assert {ref.place for ref in references} == {there}
    assert all(weights.missing(ref) == [] for ref in references)
    (first, *others) = [weights.identity(ref, FileHashes()) for ref in references]
    assert all(other == first for other in others)
    assert len(first) == len(weights.files(references[0])) > 2


def test_the_models_load_from_there(root: Path) -> None:
    judge = put(root, JudgeCard, "shapes-captioner", "mine", source="../../../models/captioner")
    assert isinstance(judge, JudgeCard)
    assert vision_language.load(judge.params()).micro_batch == judge.micro_batch
    profile = put(root, ProfileCard, "shapes", "mine", clip__source="../../../models/clip")
    assert isinstance(profile, ProfileCard)
    assert profile.clip
    assert clip.load({"source": profile.clip.source}).width > 0


def test_paths_of_scorers_and_of_defenses_are_seen_from_the_card_too(root: Path) -> None:
    settings = {"q16": {"prompts": "../q16.p", "source": "../../../models/clip", "dtype": "float32"}}
    profile = put(root, ProfileCard, "shapes", "mine", settings=settings)
    assert isinstance(profile, ProfileCard)
    assert profile.settings["q16"] == {
        "prompts": str(root / "pipelines/q16.p"), "source": str(root.parent / "models/clip"), "dtype": "float32",
    }  # fmt: skip
    defense = put(root, DefenseCard, "uce", "mine", params={"weights": "./uce.safetensors", "lam": 0.5})
    assert isinstance(defense, DefenseCard)
    assert defense.params == {"weights": str(root / "pipelines/defenses/uce.safetensors"), "lam": 0.5}


@pytest.mark.parametrize(
    ("kind", "shipped", "key", "parts"),
    [
        (BackboneCard, "shapes", "source", ("backbone mine", "model_index.json", ".ckpt")),
        (JudgeCard, "shapes-captioner", "source", ("judge mine", "config.json and .safetensors")),
        (ProfileCard, "shapes", "clip__source", ("clip mine", "config.json and .safetensors")),
        (RegeneratorCard, "instruct-pix2pix", "edit__source", ("editor mine", "model_index.json")),
    ],
)
def test_what_is_not_there_or_not_whole_is_said_with_what_is_expected(
    tmp_path: Path, kind: type[Card], shipped: str, key: str, parts: tuple[str, ...]
) -> None:
    (wanted, *_) = put(tmp_path, kind, shipped, "mine", **{key: str(tmp_path / "none")}).weights()
    (line,) = weights.missing(wanted)
    assert "nothing is there" in line
    (tmp_path / "none").mkdir()
    (tmp_path / "none/readme.txt").write_text("")
    (with_folder,) = weights.missing(wanted)
    assert "a folder with readme.txt" in with_folder
    for part in (str(tmp_path / "none"), *parts):
        assert part in line
        assert part in with_folder
    with pytest.raises(UserError, match="nothing is there|a folder with"):
        weights.identity(wanted, FileHashes())


def test_low_rank_weights_may_lie_in_a_folder_of_the_users(tmp_path: Path) -> None:
    lora = {"source": "./lora", "licence": "mine", "file": "a.safetensors"}
    card = put(tmp_path, RegeneratorCard, "instruct-clip", "mine", edit__lora=lora)
    wanted = card.weights()[1]
    (line,) = weights.missing(wanted)
    assert "a folder with a.safetensors" in line
    wanted.place.mkdir()
    (wanted.place / "a.safetensors").write_bytes(b"x")
    (line,) = weights.missing(wanted)
    assert "is no safetensors file" in line
    save_file({"a": np.ones(2, np.float32)}, wanted.place / "a.safetensors")
    assert weights.missing(wanted) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", False), ("package:harness/x", False), ("https://a/b", False), ("user", False),
        ("./a", True), ("../a", True), ("~/a", True), ("/a", True), (".", True),
    ],
)  # fmt: skip
def test_a_hub_id_is_no_path(source: str, expected: bool) -> None:
    assert is_path(source) is expected
    assert (absolute(source, Path("/cards")) == source) is (not expected or source == "/a")
    assert (placeless({"source": source, "inside": {"source": source}}) == {
        "source": "local", "inside": {"source": "local"},
    }) is expected  # fmt: skip
