"""Fingerprints: what each choice changes, and above all what it does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from benches import bench

from harness.cards.base import FOLDERS, Kind, card_roots
from harness.cards.load import KINDS, load_card
from harness.cards.places import PACKAGE
from harness.cards.profile import ProfileCard
from harness.cards.scorer_ref import ScorerRef
from harness.errors import UserError
from harness.pipeline.conditions import Variant
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Request
from harness.pipeline.spec import Source, StageSpec
from harness.pipeline.stage_specs import Specs
from harness.regenerators import questions
from harness.store.fingerprint import FileHashes, closure

BEFORE = {"generate", "caption", "embed"}
HASHES = FileHashes()  # one for all: the weights are hashed once


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    bench(folder, "few", 5)
    return folder


def plan(root: Path, *regens: str, **choices: object) -> Plan:
    request = Request(defenses=("none",), benches=("few",), profile="shapes", regens=regens)
    return make(replace(request, **choices), card_roots(root), root / "data", HASHES)  # type: ignore[arg-type]


def variant(root: Path, regen: str, **choices: object) -> Variant:
    """The last variant of the first condition, with all that its numbers come from."""
    return plan(root, regen, **choices).conditions[0].variants[-1]


def fingerprints(found: Variant) -> dict[str, str]:
    return {s.stage if s.kind == "score" else s.kind: s.fingerprint for s in found.stages}


def differ(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {stage for stage in one if one[stage] != other[stage]}


def put(root: Path, kind: Kind, name: str, *changes: tuple[str, str]) -> None:
    """The project's card ``name``, changed, in the test's own root."""
    text = load_card(next(k for k in KINDS if kind == k.KIND), name, card_roots()).path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = root / FOLDERS[kind] / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def scores(found: Variant) -> set[str]:
    return {s.stage for s in found.scores}


# Of a regenerator's values


@pytest.mark.parametrize(
    "change",
    ["alpha=0.5", "lam=2", "tokens=4", "nearest=l2", "iterations=20", "reading=alg1-raw", "seed=1", "plateau=50",
     "keep_safe=true", "lr=0.1", "weight_decay=0", "dtype=bfloat16", "search=bfloat16", "compile=inductor",
     "micro_batch=8", "ban_concept=true"],
)  # fmt: skip
def test_how_a_prompt_is_optimised_changes_what_follows_and_nothing_before(root: Path, change: str) -> None:
    plain, changed = variant(root, "resafe"), variant(root, f"resafe:{change}")
    found = differ(fingerprints(plain), fingerprints(changed))
    assert found == {"optimise", "draw", *scores(plain)}
    assert scores(plain)


def test_what_is_only_about_memory_changes_nothing_but_the_room_asked_for(root: Path) -> None:
    plain = plan(root, "resafe").conditions[0]
    put(root, "regenerator", "resafe", ("  reading: eq4 ", "  memory_gb: 9\n  reading: eq4 "))
    changed = plan(root, "resafe").conditions[0]
    assert [s.fingerprint for s in plain.stages] == [s.fingerprint for s in changed.stages]
    assert [s.memory_gb for s in changed.stages if s.stage == "optimise"] == [9]


def test_a_sweep_shares_all_that_comes_before_the_optimisation(root: Path) -> None:
    grid = [
        f"resafe:alpha={alpha}:lam={lam}:tokens={n}"
        for alpha in (0.3, 0.5, 0.9)
        for lam in (0, 1, 2)
        for n in (4, 8, 12)
    ]
    (condition,) = plan(root, *grid).conditions
    by_stage: dict[str, list[str]] = {}
    for spec in condition.stages:
        by_stage.setdefault(spec.stage, []).append(spec.fingerprint)
    assert {stage: len(by_stage[stage]) for stage in ("generate", "caption", "embed", "optimise", "draw")} == {
        "generate": 1, "caption": 1, "embed": 1, "optimise": 27, "draw": 27,
    }  # fmt: skip
    assert len(condition.variants) == 28
    assert len({v.images.fingerprint for v in condition.variants}) == 28
    for stage in scores(condition.variants[-1]):
        assert len(by_stage[stage]) in (27, 28)  # a pair scorer has nothing to compare the base with


def test_regenerators_share_the_steps_they_have_in_common(root: Path) -> None:
    (condition,) = plan(root, "resafe", "resafe-image-only", "resafe-text-only", "simple-caption").conditions
    for stage in ("generate", "caption", "embed"):
        assert sum(s.stage == stage for s in condition.stages) == 1, stage


def test_pez_looks_at_no_caption(root: Path) -> None:
    found = variant(root, "pez")
    assert [s.stage for s in found.steps] == ["generate", "embed", "optimise", "draw"]
    assert fingerprints(found)["embed"] != fingerprints(variant(root, "resafe"))["embed"]
    images_only = variant(root, "resafe-image-only")
    assert fingerprints(found)["optimise"] != fingerprints(images_only)["optimise"]


def test_a_simple_caption_embeds_nothing(root: Path) -> None:
    found = variant(root, "simple-caption")
    assert [s.stage for s in found.steps] == ["generate", "caption", "draw"]
    assert fingerprints(found)["caption"] == fingerprints(variant(root, "resafe"))["caption"]


@pytest.mark.parametrize("change", ["defended=true", "backbone=other"])
def test_what_draws_changes_the_drawing_on(root: Path, change: str) -> None:
    put(root, "backbone", "shapes", ("steps: 12", "steps: 6"))
    (root / "pipelines/backbones/shapes.yaml").rename(root / "pipelines/backbones/other.yaml")
    plain = variant(root, "resafe", defenses=("uce",), baseline=False)
    changed = variant(root, f"resafe:{change}", defenses=("uce",), baseline=False)
    assert differ(fingerprints(plain), fingerprints(changed)) == {"draw", *scores(plain)}


def test_the_regeneration_is_drawn_undefended_unless_the_card_says_otherwise(root: Path) -> None:
    def method(found: StageSpec) -> str:
        mechanism: str = found.worker["drawing"]["layers"][0]["mechanism"]
        return mechanism

    plain = variant(root, "resafe", defenses=("uce",), baseline=False)
    defended = variant(root, "resafe:defended=true", defenses=("uce",), baseline=False)
    assert plain.steps[0].worker["layers"][0]["mechanism"] == "uce"
    assert (method(plain.images), method(defended.images)) == ("none", "uce")


def test_another_name_changes_the_drawing_on_and_nothing_before(root: Path) -> None:
    """The name stands in every row that is drawn, so those differ; what is seen and optimised does not."""
    put(root, "regenerator", "resafe")
    (root / "pipelines/regenerators/resafe.yaml").rename(root / "pipelines/regenerators/mine.yaml")
    plain, renamed = variant(root, "resafe"), variant(root, "mine")
    assert differ(fingerprints(plain), fingerprints(renamed)) == {"draw", *scores(plain)}
    assert renamed.settings == plain.settings


# Of files


def test_where_a_file_lies_changes_nothing_and_what_it_holds_does(root: Path, tmp_path: Path) -> None:
    def drawn(weights: Path) -> StageSpec:
        put(root, "defense", "uce", ("  technique: replace\n", f"  technique: replace\n  weights: {weights}\n"))
        return plan(root, defenses=("uce",), baseline=False).conditions[0].variants[0].images

    one, moved, other = (tmp_path / name / "uce.safetensors" for name in ("one", "moved", "other"))
    for path, content in ((one, b'{"a":1}'), (moved, b'{"a":1}'), (other, b'{"b":1}')):
        path.parent.mkdir()
        path.write_bytes(len(header := b'{"__metadata__":' + content + b"}").to_bytes(8, "little") + header)
    found = [drawn(path) for path in (one, moved, other)]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    built = [s.builds[0].fingerprint for s in found]
    assert built[0] == built[1] != built[2]
    assert [s.worker["layers"][0]["params"]["weights"] for s in found] == [str(one), str(moved), str(other)]
    assert str(tmp_path) not in str([s.key for s in found])


def test_where_a_scorer_s_weights_lie_changes_nothing(root: Path, tmp_path: Path) -> None:
    made = plan(root)
    images = made.conditions[0].variants[0].images
    shipped = PACKAGE / "shapes/weights/clip"

    def scored(weights: Path, **more: object) -> StageSpec:
        profile = made.profile.model_copy(update={"settings": {"clip_image": {"source": str(weights), **more}}})
        return Specs(profile, made.backbone, card_roots(root), HASHES).score(
            ScorerRef("clip_image", "none/base"), images, images.source
        )

    for name in ("one", "moved"):
        shutil.copytree(shipped, tmp_path / name)
    one, moved = scored(tmp_path / "one"), scored(tmp_path / "moved")
    assert one.fingerprint == moved.fingerprint != scored(tmp_path / "one", dtype="bfloat16").fingerprint
    assert one.worker["params"]["source"] == str(tmp_path / "one")
    (tmp_path / "moved/config.json").write_text("{}")
    assert scored(tmp_path / "moved").fingerprint != one.fingerprint


def test_imported_images_are_read_anew_when_what_reads_or_judges_them_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(root)
    specs = Specs(made.profile, made.backbone, card_roots(root), HASHES)
    plain = specs.imported()
    asked: list[str] = []
    monkeypatch.setattr("harness.store.fingerprint.code", lambda modules: asked.extend(closure(modules)) or "x")
    anew = Specs(made.profile, made.backbone, card_roots(root), FileHashes())
    assert anew.imported().fingerprint != plain.fingerprint
    assert {"harness.data.image_folder", "harness.pipeline.stages.images", "harness.scorers.degenerate"} <= set(asked)
    assert plain.key["libraries"]["pillow"]


# Of the models


def test_another_captioner_changes_the_captions_and_what_follows(root: Path) -> None:
    put(root, "judge", "shapes-captioner")
    (root / "pipelines/judges/shapes-captioner.yaml").rename(root / "pipelines/judges/another.yaml")
    plain, changed = variant(root, "resafe"), variant(root, "resafe:vlm=another")
    assert differ(fingerprints(plain), fingerprints(changed)) == fingerprints(plain).keys() - {"generate"}


def test_a_model_of_its_own_has_a_stage_of_its_own(root: Path) -> None:
    """So that two of a kind are loaded once each, and not in turns for every shard."""
    put(root, "judge", "shapes-captioner")
    (root / "pipelines/judges/shapes-captioner.yaml").rename(root / "pipelines/judges/another.yaml")
    put(root, "backbone", "shapes", ("steps: 12", "steps: 6"))
    (root / "pipelines/backbones/shapes.yaml").rename(root / "pipelines/backbones/other.yaml")
    found = plan(root, "resafe", "resafe:alpha=0.2", "resafe:backbone=other", "resafe:vlm=another")
    images = [name for name in found.stage_names() if not name.startswith("score-")]
    assert images == ["generate", "caption", "caption-another", "embed", "optimise", "draw", "draw-other"]
    assert found.stage_names()[: len(images)] == images
    models = {(s.stage, str(s.worker.get("vlm") if s.kind == "caption" else s.worker["drawing"]["backbone"]["name"]))
              for s in found.conditions[0].stages if s.kind in ("caption", "draw")}  # fmt: skip
    assert len(models) == 4


def test_more_tokens_than_clip_has_room_for_are_refused_before_anything_is_drawn(root: Path) -> None:
    plan(root, "resafe:tokens=22")
    with pytest.raises(
        UserError, match=r"'resafe:tokens=23': tokens is 23, and CLIP of profile 'shapes' has room for 22"
    ):
        plan(root, "resafe:tokens=23")


def test_the_captioner_named_by_the_card_is_the_profile_s(root: Path) -> None:
    """Naming what would be taken anyway changes the variant's name, not what is seen."""
    plain, named = variant(root, "resafe"), variant(root, "resafe:vlm=shapes-captioner")
    assert differ(fingerprints(plain), fingerprints(named)) == {"draw", *scores(plain)}


@pytest.mark.parametrize("change", [("micro_batch: 16", "micro_batch: 4"), ("licence:", "dtype: bfloat16\nlicence:")])
def test_how_the_captioner_is_held_changes_what_it_says(root: Path, change: tuple[str, str]) -> None:
    plain = fingerprints(variant(root, "resafe"))
    put(root, "judge", "shapes-captioner", change)
    changed = variant(root, "resafe")
    assert differ(plain, fingerprints(changed)) == plain.keys() - {"generate"}


def test_words_about_the_captioner_change_nothing(root: Path) -> None:
    plain = fingerprints(variant(root, "resafe"))
    put(root, "judge", "shapes-captioner", ("summary: ", "summary: indeed "), ("memory_gb: 0.3", "memory_gb: 3"))
    assert fingerprints(variant(root, "resafe")) == plain


def test_how_clip_is_held_changes_features_and_what_follows(root: Path) -> None:
    plain = fingerprints(variant(root, "resafe"))
    put(root, "profile", "shapes", ("  micro_batch: 64", "  micro_batch: 8"))
    changed = fingerprints(variant(root, "resafe"))
    assert differ(plain, changed) == plain.keys() - {"generate", "caption"}


def test_other_questions_change_the_captions_and_what_follows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fingerprints(variant(root, "resafe"))
    first, *rest = questions.TURNS["shapes"]["nudity"]
    asked = (replace(first, prompt="What do you see?"), *rest)
    monkeypatch.setitem(questions.TURNS["shapes"], "nudity", asked)
    assert differ(plain, fingerprints(variant(root, "resafe"))) == plain.keys() - {"generate"}


def test_how_long_an_answer_may_be_changes_the_captions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fingerprints(variant(root, "resafe"))
    *rest, last = questions.TURNS["shapes"]["nudity"]
    monkeypatch.setitem(questions.TURNS["shapes"], "nudity", (*rest, replace(last, max_new_tokens=7)))
    assert differ(plain, fingerprints(variant(root, "resafe"))) == plain.keys() - {"generate"}


def test_another_concept_is_asked_about_otherwise(root: Path) -> None:
    plain, other = fingerprints(variant(root, "resafe")), fingerprints(variant(root, "resafe", concept="violence"))
    assert differ(plain, other) == plain.keys() - {"generate"}


def test_another_backbone_setting_changes_everything(root: Path) -> None:
    plain = fingerprints(variant(root, "resafe"))
    put(root, "backbone", "shapes", ("steps: 12", "steps: 6"))
    assert differ(plain, fingerprints(variant(root, "resafe"))) == set(plain)


def test_words_that_may_not_be_chosen_count_only_where_they_are_banned(root: Path) -> None:
    free, banned = (fingerprints(variant(root, r)) for r in ("resafe", "resafe:ban_concept=true"))
    put(root, "regenerator", "resafe", ("nudity: [star, sparkle, twinkle]", "nudity: [star, sparkle, twinkle, five]"))
    assert fingerprints(variant(root, "resafe")) == free
    assert differ(banned, fingerprints(variant(root, "resafe:ban_concept=true"))) == banned.keys() - BEFORE


# References


def test_pair_scorers_compare_with_the_images_their_name_says(root: Path) -> None:
    none, uce = plan(root, "resafe", defenses=("uce",), extra_scorers=("shapes_clip@none/base",)).conditions
    base, regen = ({s.stage: s for s in v.scores} for v in uce.variants)
    generated = uce.variants[0].images
    assert regen["score-shapes_clip-same"].reference == generated.source
    assert "score-shapes_clip-same" not in base
    for found in (base, regen):
        reference = found["score-shapes_clip-none"].reference
        assert reference is not None
        assert reference[:2] == none.variants[0].images.source[:2]
    assert base["score-shapes_clip-none"].worker["reference"] == "none/base"


def test_another_reference_is_another_fingerprint(root: Path) -> None:
    uce = plan(root, "resafe", defenses=("uce",), extra_scorers=("shapes_clip@none/base",)).conditions[1]
    found = [s.fingerprint for s in uce.variants[-1].scores if s.stage.startswith("score-shapes_clip-")]
    assert len(set(found)) == 2


def test_another_undefended_image_is_another_score(root: Path) -> None:
    made = plan(root, "resafe")
    specs = Specs(made.profile, made.backbone, card_roots(root), HASHES)
    images = made.conditions[0].variants[0].images
    one, other = (specs.score(ScorerRef("shapes_clip", "none/base"), images, Source("generate", f)) for f in ("a", "b"))
    assert one.fingerprint != other.fingerprint
    assert one.stage == other.stage == "score-shapes_clip-none"


def test_a_scorer_beside_changes_no_other_fingerprint(root: Path) -> None:
    plain = fingerprints(variant(root, "resafe"))
    more = fingerprints(variant(root, "resafe", extra_scorers=("shapes_clip_score", "ssim@same/base")))
    assert plain.items() <= more.items()
    assert more.keys() - plain.keys() == {"score-shapes_clip_score", "score-ssim-same"}


# What is missing


@pytest.mark.parametrize(
    ("regen", "key", "said"),
    [
        ("resafe", "captioner: shapes-captioner", "'resafe' needs captions, and profile 'bare' names no captioner"),
        ("simple-caption", "captioner: shapes-captioner", "needs captions"),
        ("pez", "clip:", "profile 'bare' names no `clip`, which an optimised prompt needs"),
        ("resafe", "clip:", "names no `clip`"),
    ],
)
def test_a_profile_without_the_model_says_so(root: Path, regen: str, key: str, said: str) -> None:
    text = load_card(ProfileCard, "shapes", card_roots()).path.read_text()
    lines, skipping = [], False
    for line in text.splitlines():
        skipping = line.startswith(key) or (skipping and line.startswith(" "))
        lines += [] if skipping else [line]
    folder = root / "pipelines/profiles"
    folder.mkdir(parents=True)
    (folder / "bare.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=said):
        plan(root, regen, profile="bare")
    assert len(plan(root, profile="bare").conditions[0].variants) == 1  # nothing to regenerate, nothing missing


def test_a_remote_model_describes_no_images(root: Path) -> None:
    with pytest.raises(UserError, match="'gpt-judge' cannot describe images for a regenerator: it is no local model"):
        plan(root, "resafe:vlm=gpt-judge")


def test_an_unknown_captioner_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(UserError, match="unknown judge 'shape-captioner'; did you mean 'shapes-captioner'"):
        plan(root, "resafe:vlm=shape-captioner")


def test_an_unknown_backbone_to_draw_with_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(UserError, match="unknown backbone 'shape'; did you mean 'shapes'"):
        plan(root, "resafe:backbone=shape")
