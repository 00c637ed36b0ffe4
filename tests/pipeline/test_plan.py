"""Shards and fingerprints: what is shared between runs, and what must never be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from benches import bench
from PIL import Image

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.errors import UserError
from harness.pipeline.conditions import Condition, Variant
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Request
from harness.pipeline.spec import Source
from harness.store.fingerprint import FileHashes
from harness.store.schema import IMPORTED
from harness.store.shards import Store, publish


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    bench(folder, "many", 150)
    bench(folder, "few", 5)
    bench(folder, "harmless", 5, "benign")
    return folder


def _plan(root: Path, **choices: object) -> Plan:
    request = Request(defenses=("uce",), benches=("many",), profile="shapes")
    return make(replace(request, **choices), card_roots(root), root / "data", FileHashes())  # type: ignore[arg-type]


def _stages(plan: Plan) -> dict[tuple[str, str], str]:
    return {(c.defense, s.stage): s.fingerprint for c in plan.conditions for s in c.stages}


def test_rows_are_cut_once_into_shards_of_the_profiles_size(root: Path) -> None:
    assert [[s.rows.num_rows for s in c.shards] for c in _plan(root).conditions] == [[64, 64, 22]] * 2


def test_none_stands_beside_unless_it_is_switched_off(root: Path) -> None:
    assert [c.defense for c in _plan(root).conditions] == ["none", "uce"]
    assert [c.defense for c in _plan(root, baseline=False).conditions] == ["uce"]
    assert [c.defense for c in _plan(root, defenses=("none",)).conditions] == ["none"]


def test_a_limited_run_shares_whole_shards_and_nothing_else(root: Path) -> None:
    whole = {s.key for c in _plan(root).conditions for s in c.shards}
    limited = [s.key for s in _plan(root, limit=100).conditions[0].shards]
    assert [key in whole for key in limited] == [True, False]


def test_fingerprints_do_not_depend_on_the_rows(root: Path) -> None:
    assert _stages(_plan(root)) == _stages(_plan(root, limit=64)) == _stages(_plan(root, benches=("few",)))


def _seen_at_once(plan: Plan) -> set[tuple[str, int]]:
    """By stage the micro-batch, as the worker takes it; it is in the fingerprint's key just as well."""
    sizes = set()
    for stage in (s for c in plan.conditions for s in c.stages if not s.stage.startswith("score")):
        found = [_sizes(part) for part in (stage.worker, stage.key)]
        assert found[0] == found[1]
        assert len(found[0]) == 1
        sizes.add((stage.stage, found[0].pop()))
    return sizes


def _sizes(part: object) -> set[int]:
    """Every micro-batch at any depth, but of what artefacts are made of."""
    if not isinstance(part, dict):
        return set()
    own = {part["micro_batch"]} if "micro_batch" in part else set()
    return own.union(*(_sizes(value) for name, value in part.items() if name != "layers"))


@pytest.mark.parametrize(
    ("choices", "rows"), [({"limit": 3}, 3), ({"limit": 2, "benches": ("many", "few")}, 2),
                          ({"ids": ("many/00001", "few/00000", "few/00002"), "benches": ("many", "few")}, 2)],
)  # fmt: skip
def test_no_model_sees_more_at_once_than_the_subset_that_was_asked_for(
    root: Path, choices: dict[str, object], rows: int
) -> None:
    plan = _plan(root, regens=("resafe", "simple-caption"), **choices)
    seen = _seen_at_once(plan)
    assert seen == {(stage, rows) for stage in ("generate", "caption", "embed", "optimise", "draw")}


def test_a_subset_is_drawn_with_the_artefact_of_all_rows(root: Path) -> None:
    whole, few = _plan(root), _plan(root, limit=2)
    assert [b.fingerprint for b in whole.builds] == [b.fingerprint for b in few.builds]
    assert [b.worker for b in whole.builds] == [b.worker for b in few.builds]
    assert len(few.builds) == 1
    assert not set(_stages(whole).values()) & set(_stages(few).values())


def test_another_seed_changes_shards_not_fingerprints(root: Path) -> None:
    a, b = _plan(root), _plan(root, seed=7)
    assert _stages(a) == _stages(b)
    assert not {s.key for c in a.conditions for s in c.shards} & {s.key for c in b.conditions for s in c.shards}
    assert set(b.conditions[0].shards[0].rows["seed"].to_pylist()) == {7}


def test_a_changed_card_value_changes_that_defense_and_what_follows_it_only(root: Path) -> None:
    before = _stages(_plan(root))
    text = load_card(DefenseCard, "uce", card_roots(None)).path.read_text()
    (root / "pipelines/defenses").mkdir(parents=True)
    (root / "pipelines/defenses/uce.yaml").write_text(text.replace("lam: 0.5", "lam: 0.6"))
    after = _stages(_plan(root))
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key[0] == "uce"}


def test_changed_words_about_a_card_change_nothing(root: Path) -> None:
    before = _stages(_plan(root))
    text = load_card(BackboneCard, "shapes", card_roots(None)).path.read_text()
    (root / "pipelines/backbones").mkdir(parents=True)
    (root / "pipelines/backbones/shapes.yaml").write_text(text.replace("summary: ", "summary: now "))
    assert _stages(_plan(root)) == before


@pytest.mark.parametrize(("key", "value"), [("steps", 3), ("micro_batch", 2)])
def test_a_changed_backbone_setting_changes_every_stage(root: Path, key: str, value: int) -> None:
    before = _stages(_plan(root))
    card = load_card(BackboneCard, "shapes", card_roots(None))
    lines = card.path.read_text().splitlines()
    (root / "pipelines/backbones").mkdir(parents=True)
    changed = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines]
    (root / "pipelines/backbones/shapes.yaml").write_text("\n".join(changed))
    after = _stages(_plan(root))
    assert not set(before.values()) & set(after.values())


def test_another_concept_changes_the_defense_and_is_stamped(root: Path) -> None:
    plain, other = _plan(root), _plan(root, concept="violence")
    assert _stages(plain)["none", "generate"] == _stages(other)["none", "generate"]
    assert _stages(plain)["uce", "generate"] != _stages(other)["uce", "generate"]
    assert [(c.concept, c.defended) for c in other.conditions] == [("nudity", "nudity"), ("nudity", "violence")]


def test_missing_is_what_the_store_does_not_have(root: Path, tmp_path: Path) -> None:
    plan, store = _plan(root, limit=100), Store.open(tmp_path / "store")
    assert plan.missing(store) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for stage in plan.conditions[0].stages:
        publish(store.path(stage.stage, stage.fingerprint, plan.conditions[0].shards[1].key), pa.table({"a": [1]}))
    assert plan.missing(store) == [(0, 0), (1, 0), (1, 1)]


def test_ids_may_name_rows_of_several_benchmarks(root: Path) -> None:
    plan = _plan(root, benches=("many", "few"), ids=("few/00002", "many/00149"), baseline=False)
    assert [c.shards[0].rows["row_id"].to_pylist() for c in plan.conditions] == [["many/00149"], ["few/00002"]]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"defenses": ("rcee",)}, "unknown defense 'rcee'; did you mean 'rece'"),
        ({"benches": ("ring-a-bel-k77",)}, "unknown dataset 'ring-a-bel-k77'; did you mean 'ring-a-bell-k77'"),
        ({"profile": "shape"}, "unknown profile 'shape'; did you mean 'shapes'"),
        ({"limit": 0}, "--limit 0"),
        ({"ids": ("many/00150",)}, "no row 'many/00150'"),
        ({"defenses": ()}, "no defense chosen"),
        ({"concept": "violense"}, "violence"),
        ({"extra_scorers": ("nudnet",)}, "unknown scorer 'nudnet'; did you mean 'nudenet'"),
    ],
)
def test_a_wrong_choice_is_named_with_the_nearest(root: Path, choices: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        _plan(root, **choices)


def _chains(plan: Plan) -> set[tuple[str, str]]:
    return {(c.defense, c.bench) for c in plan.conditions}


@pytest.mark.parametrize(("defenses", "benches"), [(("all",), ("few", "harmless")), (("uce",), ("all",))])
def test_of_all_pairs_those_that_a_card_does_not_declare_are_left_out_and_known(
    root: Path, defenses: tuple[str, ...], benches: tuple[str, ...]
) -> None:
    plan = _plan(root, defenses=defenses, benches=benches, ids=("few/00001", "harmless/00001"))
    assert {("none", "few"), ("uce", "few"), ("none", "harmless")} <= _chains(plan)
    assert ("uce", "harmless", "benign") in plan.left_out
    assert not {(pair.defense, pair.bench) for pair in plan.left_out} & _chains(plan)
    assert {pair.bench for pair in plan.left_out} == {"harmless"}
    assert not _plan(root, defenses=defenses, benches=benches, ids=("harmless/00001",), concept="nudity").left_out


@pytest.mark.parametrize(
    ("choices", "concept"),
    [
        ({"benches": ("few", "harmless")}, "benign"),
        ({"defenses": ("all", "uce"), "benches": ("few", "harmless")}, "benign"),
        ({"defenses": ("all",), "benches": ("harmless",)}, "benign"),
        ({"defenses": ("all",), "benches": ("few",), "concept": "nudty"}, "nudty"),
    ],
)
def test_a_pair_that_was_named_or_leaves_nothing_is_refused_with_what_to_do(
    root: Path, choices: dict[str, object], concept: str
) -> None:
    with pytest.raises(UserError, match=f"not declared for concept '{concept}'.*name one with --concept"):
        _plan(root, **choices)


# Variants: the images as drawn, and as regenerators make them anew


def _names(condition: Condition) -> list[str]:
    return [v.name for v in condition.variants]


def _reference(variant: Variant, stage: str) -> Source | None:
    return next((s.reference for s in variant.scores if s.stage == stage), None)


def test_the_profile_s_regenerator_stands_beside_every_defense(root: Path) -> None:
    assert [_names(c) for c in _plan(root).conditions] == [["base", "resafe"]] * 2
    assert [_names(c) for c in _plan(root, regens=()).conditions] == [["base"]] * 2
    assert [_names(c) for c in _plan(root, regens=("none",)).conditions] == [["base"]] * 2
    asked = _plan(root, regens=("simple-caption", "resafe:alpha=0.5", "pez"))
    assert [_names(c) for c in asked.conditions] == [["base", "simple-caption", "resafe:alpha=0.5", "pez"]] * 2


def test_each_variant_is_an_image_more(root: Path) -> None:
    plan = _plan(root, regens=("simple-caption", "resafe"), limit=7)
    assert [c.num_rows for c in plan.conditions] == [7, 7]
    assert plan.num_rows == 7 * 3 * 2


def test_variants_share_their_base_and_its_shards(root: Path) -> None:
    for condition in _plan(root, regens=("simple-caption", "resafe")).conditions:
        assert len({v.steps[0].fingerprint for v in condition.variants}) == 1
        assert sum(s.stage == "generate" for s in condition.stages) == 1
        assert {s.rows["variant"][0].as_py() for s in condition.shards} == {"base"}


def test_stages_come_in_an_order_in_which_each_has_what_it_reads(root: Path) -> None:
    plan = _plan(root, regens=("resafe", "simple-caption", "pez"), extra_scorers=("shapes_clip@none/base",))
    order = plan.stage_names()
    assert order[:5] == ["generate", "caption", "embed", "optimise", "draw"]
    for condition in plan.conditions:
        for spec in condition.stages:
            read = [*spec.upstream, *([spec.reference] if spec.reference else [])]
            assert all(order.index(source.stage) < order.index(spec.stage) for source in read)
            made = {(s.stage, s.fingerprint) for c in plan.conditions for s in c.stages}
            assert all(source[:2] in made for source in read)


def test_a_regenerated_run_has_a_name_of_its_own(root: Path) -> None:
    names = {
        _plan(root, regens=r).name for r in (None, ("none",), ("pez",), ("resafe:alpha=0.5",), ("resafe:tokens=9",))
    }
    assert len(names) == 5
    assert _plan(root, regens=("resafe:alpha=0.7",)).name == _plan(root).name


def test_the_undefended_images_of_the_same_prompts_are_what_none_base_names(root: Path) -> None:
    none, uce = _plan(root, extra_scorers=("shapes_clip@none/base",)).conditions
    for variant in uce.variants:
        reference = _reference(variant, "score-shapes_clip-none")
        assert reference is not None
        assert reference.keys is not None
        other = {s.key: s for s in none.shards}
        for shard in uce.shards:
            same = other[reference.keys[shard.key]]
            assert same.key != shard.key
            assert same.rows.drop_columns(["defense"]).equals(shard.rows.drop_columns(["defense"]))
    own = _reference(none.variants[1], "score-shapes_clip-none")
    assert own == none.variants[0].images.source  # of an undefended condition it is the image before regeneration
    assert _reference(none.variants[0], "score-shapes_clip-none") is None  # and the base is not compared with itself


def test_each_benchmark_s_images_are_compared_with_its_own(root: Path) -> None:
    plan = _plan(root, benches=("many", "few"), extra_scorers=("shapes_clip@none/base",))
    conditions = {(c.bench, c.defense): c for c in plan.conditions}
    for name in ("many", "few"):
        reference = _reference(conditions[name, "uce"].variants[0], "score-shapes_clip-none")
        assert reference is not None
        assert reference.keys is not None
        assert set(reference.keys.values()) == {s.key for s in conditions[name, "none"].shards}


def test_another_seed_is_compared_with_the_same_seed(root: Path) -> None:
    none, uce = _plan(root, seed=7, extra_scorers=("shapes_clip@none/base",)).conditions
    reference = _reference(uce.variants[0], "score-shapes_clip-none")
    assert reference is not None
    assert reference.keys == {uce.shards[i].key: none.shards[i].key for i in range(3)}


def test_without_the_baseline_there_is_no_undefended_image(root: Path) -> None:
    (uce,) = _plan(root, baseline=False, extra_scorers=("shapes_clip@none/base",)).conditions
    for variant in uce.variants:
        assert _reference(variant, "score-shapes_clip-none") is None
        assert not any(s.stage == "score-shapes_clip-none" for s in variant.scores)
    assert _reference(uce.variants[1], "score-shapes_clip-same") == uce.variants[0].images.source


# Benign prompts: nothing is to be removed, unless --concept says what


def test_harmless_prompts_are_not_regenerated_by_default(root: Path) -> None:
    plan = _plan(root, defenses=("none",), benches=("harmless", "few"))
    assert {c.bench: _names(c) for c in plan.conditions} == {"harmless": ["base"], "few": ["base", "resafe"]}


@pytest.mark.parametrize("regen", ["resafe", "simple-caption", "resafe:alpha=0.5"])
def test_a_regenerator_asked_for_by_name_must_know_what_to_remove(root: Path, regen: str) -> None:
    with pytest.raises(
        UserError, match=f"regenerator {regen!r} has no questions to ask about concept 'benign'"
    ) as said:
        _plan(root, defenses=("none",), benches=("harmless",), regens=(regen,))
    for hint in ("it has for: nudity, violence, van-gogh", "--concept", "--regen none"):
        assert hint in str(said.value)


def test_harmless_prompts_can_be_regenerated_for_a_concept(root: Path) -> None:
    for regens in (None, ("resafe",)):
        (condition,) = _plan(
            root, defenses=("none",), benches=("harmless",), regens=regens, concept="nudity"
        ).conditions
        assert _names(condition) == ["base", "resafe"]
        caption, draw = condition.variants[1].steps[1], condition.variants[1].images
        assert caption.worker["concept"] == "nudity"
        assert draw.worker["drawing"]["concept"] == "nudity"  # what the guard is told
        assert condition.concept == "benign"  # what is scored


def test_the_concept_that_is_removed_is_the_benchmark_s(root: Path) -> None:
    for condition in _plan(root).conditions:
        assert condition.variants[1].steps[1].worker["concept"] == "nudity"


def test_pez_asks_nothing_and_takes_any_prompt(root: Path) -> None:
    (condition,) = _plan(root, defenses=("none",), benches=("harmless",), regens=("pez",)).conditions
    assert _names(condition) == ["base", "pez"]


# Refusals


def _profile(root: Path, *changes: tuple[str, str]) -> str:
    """A profile like shapes, changed."""
    text = load_card(ProfileCard, "shapes", card_roots()).path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder = root / "pipelines/profiles"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(text)
    return "mine"


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("shapes_clip", "shapes_clip needs a reference: shapes_clip@same/base or @none/base"),
        ("nudenet@same/base", "scorer 'nudenet@same/base': nudenet compares with no other image"),
        ("shapes_clip_score@none/base", "shapes_clip_score compares with no other image"),
    ],
)
def test_a_reference_stands_where_two_images_are_compared_and_nowhere_else(root: Path, scorer: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _plan(root, extra_scorers=(scorer,))


@pytest.mark.parametrize(
    "wanted",
    ["shapes_clip_cosin@same/base", "shapes_clip_cosine", "shapes_clip_cosine@none/base", "lpips_alex@same/base"],
)
def test_the_mean_of_a_column_that_nobody_has_is_refused(root: Path, wanted: str) -> None:
    name = _profile(root, ("means: [shapes_clip_cosine@same/base,", f"means: [{wanted},"))
    with pytest.raises(UserError, match=f"means: no scorer has {wanted!r}; did you mean") as said:
        _plan(root, profile=name)
    assert "mine.yaml" in str(said.value)


# Images that were not drawn here


def test_imported_images_are_one_chain_of_their_own(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    plan = _plan(root, images=str(folder), concept="nudity", defenses=(), benches=(), regens=("resafe", "pez"))
    (condition,) = plan.conditions
    assert (condition.defense, condition.bench, condition.concept, condition.num_rows) == (
        IMPORTED,
        "images-found",
        "nudity",
        3,
    )
    assert [[s.stage for s in v.steps] for v in condition.variants] == [
        ["imported"], ["imported", "caption", "embed", "optimise", "draw"], ["imported", "embed", "optimise", "draw"],
    ]  # fmt: skip
    folder.rename(tmp_path / "moved")
    moved = _plan(root, images=str(tmp_path / "moved"), concept="nudity", defenses=(), benches=(), regens=("resafe",))
    assert moved.conditions[0].variants[1].images.fingerprint == condition.variants[1].images.fingerprint


def test_imported_images_need_a_concept_and_no_defense_draws_them(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="--concept says what is to be looked for"):
        _plan(root, images=str(tmp_path), defenses=(), benches=())
    with pytest.raises(UserError, match="draws under a defense, and given images have none"):
        _plan(root, images=str(tmp_path), concept="nudity", defenses=(), benches=(), regens=("resafe:defended=true",))
