"""Published weights: which a card names, whether they are here, how to get them; no network, or a local one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from web_server import Web, web

from harness import scorers
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.cards.weights_ref import WeightsRef
from harness.errors import UserError
from harness.models import weights
from harness.pipeline import prerequisites
from harness.pipeline.evaluate import Places, prepare
from harness.pipeline.request import Request

REPO = Path(__file__).resolve().parents[2]
ROOTS = [REPO]
PAPER = load_card(ProfileCard, "paper", ROOTS)
SHAPES = load_card(ProfileCard, "shapes", ROOTS)
SD = load_card(BackboneCard, "sd-1-4", ROOTS)
SMALL = load_card(BackboneCard, "shapes", ROOTS)
FILES = ("a.json", "b/c.bin")
HELD = WeightsRef(role="clip", name="mine", source="owner/model", revision="a" * 40, files=FILES, licence="MIT")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


WHOLE = {".safetensors": (2).to_bytes(8, "little") + b"{}", ".json": b"{}"}


def put(cache: Path, wanted: WeightsRef, *names: str) -> None:
    """Lay files where a download would."""
    folder = cache / f"models--{wanted.source.replace('/', '--')}" / "snapshots" / str(wanted.revision)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WHOLE.get(Path(name).suffix, b"x"))


def test_a_backbone_names_itself_a_judge_behind_an_api_nothing() -> None:
    (reference,) = SD.weights()
    assert (reference.name, reference.source, reference.revision, reference.files) == (
        SD.name, SD.source, SD.revision, SD.files,
    )  # fmt: skip
    assert load_card(JudgeCard, "gpt-judge", ROOTS).weights() == ()
    local = load_card(JudgeCard, "qwen2-vl-7b", ROOTS)
    assert [str(w) for w in local.weights()] == ["judge qwen2-vl-7b"]
    assert load_card(DefenseCard, "none", ROOTS).weights() == ()


def test_a_profile_names_all_that_it_draws_with() -> None:
    assert [w.source for w in prerequisites.profile_weights(PAPER, ROOTS)] == [
        "CompVis/stable-diffusion-v1-4", "Qwen/Qwen2-VL-7B-Instruct", "openai/clip-vit-large-patch14",
    ]  # fmt: skip
    assert PAPER.model_copy(update={"clip": None}).weights() == ()


def test_an_editor_names_its_pipeline_and_its_lora() -> None:
    assert [w.source for w in load_card(RegeneratorCard, "instruct-clip", ROOTS).weights()] == [
        "timbrooks/instruct-pix2pix", "SherryXTChen/InstructCLIP-InstructPix2Pix",
    ]  # fmt: skip
    assert load_card(RegeneratorCard, "resafe", ROOTS).weights() == ()


def test_a_scorer_names_the_hubs_model_that_it_reads_and_no_file_of_the_users(tmp_path: Path) -> None:
    (clip,) = scorers.hub_weights("q16")
    assert (clip.source, clip.revision) == ("openai/clip-vit-large-patch14", PAPER.clip and PAPER.clip.revision)
    assert scorers.hub_weights("clip_image") != ()
    assert scorers.hub_weights("q16", {"source": str(tmp_path)}) == ()
    assert scorers.hub_weights("nudenet") == ()


@pytest.mark.parametrize("name", ["sd-1-4", "qwen2-vl-7b", "instruct-clip", "paper", "q16", "shapes"])
def test_weights_are_found_by_the_name_of_whatever_needs_them(name: str) -> None:
    found = prerequisites.find_weights(name, ROOTS)
    assert found
    assert len({(w.source, w.files) for w in found}) == len(found)


@pytest.mark.parametrize(
    ("name", "part"),
    [("sd-1.4", "did you mean 'sd-1-4'?"), ("gpt-judge", "no weights of its own"), ("ssim", "no weights of its own")],
)
def test_a_name_without_weights_is_refused(name: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        prerequisites.find_weights(name, ROOTS)
    assert part in str(error.value)


@pytest.mark.parametrize("wanted", [SD.weights()[0], HELD], ids=["card", "held"])
def test_weights_in_the_cache_are_not_missing(cache: Path, wanted: WeightsRef) -> None:
    put(cache, wanted, *wanted.files[:-1])
    (line,) = weights.missing(wanted)
    assert f"1 of {len(wanted.files)} files" in line
    assert f"harness fetch weights {wanted.name}" in line
    put(cache, wanted, wanted.files[-1])
    assert weights.missing(wanted) == []


def test_another_revision_in_the_cache_does_not_count(cache: Path) -> None:
    put(cache, WeightsRef(**vars(HELD) | {"revision": "b" * 40}), *HELD.files)
    assert len(weights.missing(HELD)) == 1


def test_a_pattern_may_match_nothing(cache: Path) -> None:
    wanted = WeightsRef(**vars(HELD) | {"files": ("a.json", "*.txt")})
    put(cache, wanted, "a.json")
    assert weights.missing(wanted) == []


def test_gated_weights_say_where_to_ask(cache: Path) -> None:
    (line,) = weights.missing(WeightsRef(**vars(HELD) | {"gated": True}))
    assert "accept the terms at https://huggingface.co/owner/model and set HF_TOKEN" in line


@pytest.mark.parametrize("card", [SMALL.model_copy(update={"source": "package:weights/none"})])
def test_a_broken_package_is_told_apart_from_a_missing_download(card: BackboneCard) -> None:
    assert "missing from the package" in weights.missing(*card.weights())[0]
    with pytest.raises(UserError, match="missing from the package"):
        weights.fetch(*card.weights())


def test_what_the_package_holds_is_not_missing(tmp_path: Path) -> None:
    assert [line for w in prerequisites.profile_weights(SHAPES, ROOTS) for line in weights.missing(w)] == []
    assert weights.fetch(SMALL.weights()[0]).is_dir()
    assert prerequisites.missing(prerequisites.profile_weights(SHAPES, ROOTS), SHAPES, tmp_path, SHAPES.scorers) == []


def test_one_list_names_benchmarks_weights_and_scorers_files(cache: Path, tmp_path: Path) -> None:
    things = [load_card(BenchmarkCard, "i2p", ROOTS), *SD.weights(), HELD, *prerequisites.profile_weights(PAPER, ROOTS)]
    lines = prerequisites.missing(things, PAPER, tmp_path, ["nudenet", "q16", "q16"])
    parts = (
        "fetch bench i2p", "fetch weights sd-1-4", "fetch weights mine", "fetch weights qwen2-vl-7b",
        "fetch weights paper", "scorer 'q16' needs the parameter 'prompts'", "fetch weights q16",
    )  # fmt: skip
    assert len(lines) == len(parts)
    for line, part in zip(lines, parts, strict=True):
        assert part in line
    with pytest.raises(UserError) as error:
        prerequisites.require(things, PAPER, tmp_path, ["q16"])
    assert str(error.value).count("\n  - ") == 7


def test_a_file_that_was_not_downloaded_whole_is_missing(cache: Path) -> None:
    (reference,) = SD.weights()
    put(cache, reference, *(name.partition("|")[0] for name in reference.required_files))
    assert weights.missing(reference) == []
    path = weights.files(reference)[0]
    path.write_bytes(b"")
    (line,) = weights.missing(reference)
    assert f"{path} is empty: remove it, then `harness fetch weights sd-1-4`" in line


def test_a_scorer_whose_files_are_here_lacks_nothing(cache: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.p"
    prompts.write_bytes(b"x")
    (clip,) = scorers.hub_weights("q16")
    put(cache, clip, "config.json", "preprocessor_config.json")
    assert "1 of 3 files" in prerequisites.missing_of_scorer("q16", {"prompts": str(prompts)})[0]
    put(cache, clip, "model.safetensors")
    assert prerequisites.missing_of_scorer("q16", {"prompts": str(prompts)}) == []


def test_a_scorers_weights_may_be_a_file_of_tensors_that_is_no_safetensors(cache: Path) -> None:
    """The pinned revision of CLIP ViT-B/16 has pytorch_model.bin only."""
    (clip,) = scorers.hub_weights("word_removed")
    put(cache, clip, "config.json", "preprocessor_config.json", "pytorch_model.bin")
    assert prerequisites.missing_of_scorer("word_removed", {}) == []


FETCH = """
import sys
from harness.cards.weights_ref import WeightsRef
from harness.errors import UserError
from harness.models import weights
wanted = WeightsRef(role="clip", name="mine", source="owner/model", revision="1" * 40, files=tuple(sys.argv[1:]),
                      licence="MIT")
try:
    print(sorted(p.name for p in weights.fetch(wanted, "hf_test").iterdir()))
except UserError as error:
    print("refused:", error)
"""


def through_hub(tmp_path: Path, *files: str, code: int = 200) -> str:
    """What fetching ``files`` prints when the hub's repository holds a.json and c.txt."""
    revision = "1" * 40
    tree = [{"type": "file", "path": name, "size": 2, "oid": "0" * 40} for name in ("a.json", "c.txt")]
    info = {"id": "owner/model", "sha": revision, "siblings": [{"rfilename": entry["path"]} for entry in tree]}
    answers = {
        f"/api/models/owner/model/revision/{revision}": (code, json.dumps(info).encode()),
        f"/api/models/owner/model/tree/{revision}": (code, json.dumps(tree).encode()),
        **{f"/owner/model/resolve/{revision}/{entry['path']}": (code, b"{}") for entry in tree},
    }
    if code != 200:
        answers = dict.fromkeys(answers, (code, b""))
    with web(answers) as address:
        env = os.environ | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"
        }  # fmt: skip
        command = [sys.executable, "-c", FETCH, *files]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPO, check=True).stdout


def test_weights_come_through_the_hub_those_that_are_named_and_no_others(tmp_path: Path) -> None:
    assert through_hub(tmp_path, "a.json").strip() == "['a.json']"
    assert Web.asked


def test_a_file_that_the_repository_does_not_hold_is_named(tmp_path: Path) -> None:
    message = through_hub(tmp_path, "a.json", "model.safetensors")
    assert "does not hold model.safetensors, which its card names" in message


def test_of_two_names_of_one_file_the_first_that_the_repository_holds_is_taken(tmp_path: Path) -> None:
    assert through_hub(tmp_path / "a", "a.json", "model.safetensors|c.txt").strip() == "['a.json', 'c.txt']"
    assert through_hub(tmp_path / "b", "a.json|c.txt").strip() == "['a.json']"
    message = through_hub(tmp_path / "c", "a.json", "model.safetensors|model.bin")
    assert "does not hold model.safetensors or model.bin, which its card names" in message


def test_no_access_to_weights_is_told_in_a_few_words(tmp_path: Path) -> None:
    message = through_hub(tmp_path, "a.json", code=403)
    assert message.strip() == "refused: weights of clip mine: owner/model: access is not granted to this token"


def test_a_defense_s_weights_of_the_hub_are_named_with_all_else_that_a_run_lacks(cache: Path, tmp_path: Path) -> None:
    root, commit = tmp_path / "cards", "0" * 40
    (root / "pipelines/defenses").mkdir(parents=True)
    (root / "pipelines/defenses/published.yaml").write_text(
        "summary: of a test\npaper: none\nmechanism: rece\nartefact: true\nlicence: MIT\n"
        "params: {weights: null}\nconcepts:\n"
        f"  nudity: {{erase: [nudity], epochs: 1, weights: 'hub:some/one@{commit}/deep/nudity.pt'}}\n"
        f"  van-gogh: {{erase: [Van Gogh], epochs: 1, weights: 'hub:some/one@{commit}/van-gogh.pt'}}\n"
    )
    roots = card_roots(root)
    request = Request(defenses=("published",), benches=("ring-a-bell-k77",), profile="paper")
    with pytest.raises(UserError) as raised:
        prepare(request, Places(store=tmp_path / "store", out=tmp_path / "runs", data=tmp_path / "data", cards=root))
    assert "weights of defense published (some/one, 1 of 1 files are not in" in str(raised.value)
    assert "`harness fetch weights published`" in str(raised.value)
    assert "backbone sd-1-4" in str(raised.value)
    both = prerequisites.find_weights("published", roots)
    assert [(w.source, w.revision, w.files) for w in both] == [
        ("some/one", commit, ("deep/nudity.pt",)), ("some/one", commit, ("van-gogh.pt",)),
    ]  # fmt: skip
    put(cache, both[0], "deep/nudity.pt")
    assert weights.missing(both[0]) == []
    with pytest.raises(UserError) as raised:
        prepare(request, Places(store=tmp_path / "store", out=tmp_path / "runs", data=tmp_path / "data", cards=root))
    assert "defense published" not in str(raised.value)  # the other concept's are not asked for
