"""Which stages run side by side, and which one after the other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from benches import bench
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.errors import UserError
from harness.pipeline.conditions import Condition, Variant
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Request
from harness.pipeline.schedule import Phase, cut
from harness.pipeline.spec import Source, StageSpec
from harness.store.fingerprint import FileHashes

PICTURES = ("generate", "caption", "embed", "optimise", "draw")
SCORES = ("score-a", "score-b")
ROOTS = card_roots()
PROFILE = load_card(ProfileCard, "shapes", ROOTS)
BACKBONE: BackboneCard = load_card(BackboneCard, "shapes", ROOTS)


def spec(stage: str, memory: float | None = None, reference: Source | None = None) -> StageSpec:
    """A stage; with a memory it needs a GPU."""
    return StageSpec(
        stage=stage, kind=stage, worker={}, key={}, fingerprint=f"{stage}-print", reference=reference,
        gpu=memory is not None, memory_gb=memory or 0.0,
    )  # fmt: skip


def plan(*specs: StageSpec) -> Plan:
    """A plan of one condition with these stages."""
    images = tuple(s for s in specs if not s.stage.startswith("score"))
    scores = tuple(s for s in specs if s.stage.startswith("score"))
    condition = Condition(
        defense="none", bench="b", concept="nudity", defended="nudity", total_rows=0, shards=(),
        variants=(Variant(name="base", steps=images, scores=scores),),
    )  # fmt: skip
    request = Request(defenses=("none",), benches=("b",))
    return Plan(request=request, profile=PROFILE, backbone=BACKBONE, conditions=(condition,), policies={})


def regeneration(*memory: float) -> Plan:
    """generate, caption, embed, optimise, draw with these memories, and two scorers that need no GPU."""
    return plan(*(spec(n, m) for n, m in zip(PICTURES, memory, strict=True)), *map(spec, SCORES))


def stages(phases: list[Phase]) -> list[tuple[str, ...]]:
    return [phase.stages for phase in phases]


def test_without_a_gpu_everything_is_one_process() -> None:
    phases = cut(regeneration(4, 20, 3, 4, 4), 0, None)
    assert stages(phases) == [(*PICTURES, *SCORES)]
    assert [[s.gpu for s in phase.actor_groups] for phase in phases] == [[0.0]]
    assert cut(regeneration(4, 20, 3, 4, 4), 0, 1.0) == phases  # and no GPU's memory counts


def test_what_fits_side_by_side_is_one_leg() -> None:
    (phase,) = cut(regeneration(4, 20, 3, 4, 4), 1, 80)
    assert [s.stages for s in phase.actor_groups] == [(n,) for n in PICTURES] + [SCORES]
    assert [s.gpu for s in phase.actor_groups] == pytest.approx([4 / 35, 20 / 35, 3 / 35, 4 / 35, 4 / 35, 0], abs=0.001)


def test_what_does_not_fit_is_cut_in_order() -> None:
    phases = cut(regeneration(4, 20, 3, 4, 4), 1, 24)  # 22.08 GB may be taken
    assert stages(phases) == [("generate",), ("caption",), ("embed", "optimise", "draw", *SCORES)]
    phases = cut(regeneration(4, 16, 3, 4, 4), 2, 24)
    assert stages(phases) == [("generate", "caption"), ("embed", "optimise", "draw", *SCORES)]


def test_of_unknown_memory_each_model_has_a_leg_and_scorers_go_with_the_last() -> None:
    phases = cut(regeneration(4, 20, 3, 4, 4), 1, None)
    assert stages(phases) == [("generate",), ("caption",), ("embed",), ("optimise",), ("draw", *SCORES)]
    assert all(phase.actor_groups[0].gpu == 1 for phase in phases)


def test_what_fits_nowhere_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"stage 'caption' needs 23 GB .* and a GPU here has 24 GB"):
        cut(regeneration(4, 23, 3, 4, 4), 1, 24)
    assert cut(regeneration(4, 22, 3, 4, 4), 1, 24)


def test_what_needs_no_gpu_comes_before_what_reads_it() -> None:
    """Images that were not drawn here are taken from their files, then captioned on a GPU."""
    found = plan(spec("imported"), spec("caption", 20), spec("embed", 3), spec("score-a"))
    (phase,) = cut(found, 1, 80)
    assert [s.stages for s in phase.actor_groups] == [("imported",), ("caption",), ("embed",), ("score-a",)]
    assert [s.gpu > 0 for s in phase.actor_groups] == [False, True, True, False]
    assert stages(cut(found, 1, None)) == [("imported", "caption"), ("embed", "score-a")]


def test_what_looks_at_another_chain_s_images_waits_for_all_of_them() -> None:
    across = spec("score-a", reference=Source("generate", "x", {"k": "other"}))
    within = spec("score-b", reference=Source("generate", "x"))
    for gpus, room in ((0, None), (1, 80), (2, None)):
        found = plan(spec("generate", 4), spec("draw", 4), across, within)
        phases = cut(found, gpus, room)
        assert stages(phases)[-1] == ("score-a",)
        assert stages(phases)[-2][-1] == "score-b"


def test_what_looks_across_is_cut_by_memory_too() -> None:
    def across(stage: str, memory: float) -> StageSpec:
        return spec(stage, memory, Source("generate", "x", {"k": "other"}))

    found = plan(spec("generate", 4), across("score-a", 10), across("score-b", 10))
    assert stages(cut(found, 1, 80)) == [("generate",), ("score-a", "score-b")]
    assert stages(cut(found, 1, 20)) == [("generate",), ("score-a",), ("score-b",)]
    assert stages(cut(found, 1, None)) == [("generate",), ("score-a",), ("score-b",)]
    assert stages(cut(found, 0, None)) == [("generate",), ("score-a", "score-b")]
    with pytest.raises(UserError, match="stage 'score-a' needs 10 GB .* and a GPU here has 8 GB"):
        cut(found, 1, 8)


@given(
    st.lists(st.floats(0, 30), min_size=5, max_size=5),
    st.integers(1, 8),
    st.one_of(st.none(), st.floats(33, 200)),
)
def test_every_stage_is_in_one_leg_in_order_within_the_memory(
    memory: list[float], gpus: int, room: float | None
) -> None:
    found = regeneration(*memory)
    phases = cut(found, gpus, room)
    assert [name for phase in phases for name in phase.stages] == found.stage_names()
    needs = dict(zip(PICTURES, memory, strict=True))
    for phase in phases:
        assert sum(s.gpu for s in phase.actor_groups) <= 1
        heavy = [s for s in phase.actor_groups if s.gpu]
        assert {n for s in heavy for n in s.stages} == {n for n in phase.stages if n in needs}
        assert all(len(s.stages) == 1 for s in heavy)
        own = [needs[n] for n in phase.stages if n in needs]
        if room is not None:
            assert sum(own) <= 0.92 * room
        else:
            assert sum(m > 0 for m in own) <= 1
    if room is not None:  # two neighbours that fit together are not kept apart
        for phase, following in itertools.pairwise(phases):
            assert sum(needs.get(n, 0) for n in phase.stages) + needs.get(following.stages[0], 0) > 0.92 * room


@given(st.lists(st.floats(0.5, 30), min_size=5, max_size=5), st.floats(33, 200))
def test_an_actor_group_s_share_holds_its_model(memory: list[float], room: float) -> None:
    needs = dict(zip(PICTURES, memory, strict=True))
    for phase in cut(regeneration(*memory), 1, room):
        for group in phase.actor_groups:
            if group.gpu:
                assert group.gpu * room >= needs[group.stages[0]] - 0.001 * room


def test_the_largest_of_several_chains_counts() -> None:
    one, other = regeneration(4, 4, 4, 4, 4), regeneration(4, 30, 4, 4, 4)
    both = Plan(
        request=one.request,
        profile=PROFILE,
        backbone=BACKBONE,
        conditions=(*one.conditions, *other.conditions),
        policies={},
    )
    assert stages(cut(both, 1, 33))[1] == ("caption",)


def test_a_run_of_the_project_s_own_cards(tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    folder.mkdir()
    bench(folder, "few", 5)
    request = Request(
        defenses=("uce",), benches=("few",), profile="shapes", regens=("resafe", "simple-caption"),
        extra_scorers=("shapes_clip@none/base",),
    )  # fmt: skip
    made = make(request, card_roots(folder), tmp_path, FileHashes())
    (phase, last) = cut(made, 1, 80)
    assert phase.stages[:5] == PICTURES
    assert last.stages == ("score-shapes_clip-none",)
    assert [s.stages for s in cut(made, 0, None)] == [phase.stages, last.stages]
