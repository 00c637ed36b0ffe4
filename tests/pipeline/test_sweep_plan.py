"""Cells and plans of sweeps: names, settings, what is shared, what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.sweep import SweepCard
from harness.errors import UserError
from harness.pipeline.plan import Plan, make
from harness.pipeline.request import Places, Request
from harness.pipeline.sweep_cells import SweepCell
from harness.pipeline.sweep_grid import CardGrid, Grid, parse
from harness.pipeline.sweep_plan import Sweep, SweepPlan, cells_of, plan_of
from harness.store.fingerprint import FileHashes


def _sweep(*settings: str, mode: str = "product", **lists: str) -> Sweep:
    named = {"defense": "uce", "bench": "ring-a-bell-k77"} | lists
    grid = Grid(
        lists={name: tuple(text.split(",")) for name, text in named.items() if text},
        axes=parse(settings),
        mode=mode,  # type: ignore[arg-type]
    )
    return Sweep(grid=grid, profile="shapes", limit=4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("sweep")
    return Places(store=folder / "store", out=folder / "runs", data=folder / "data")


def _fingerprints(plan: Plan) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for spec in (s for c in plan.conditions for s in c.stages):
        found.setdefault(spec.stage.partition("-")[0], set()).add(spec.fingerprint)
    return found


def test_twenty_seven_cells_share_one_generation_one_captioning_and_one_embedding(places: Places) -> None:
    sweep = _sweep("regen.alpha=0.3,0.5,0.7", "regen.lam=0.5,1,2", "regen.tokens=4,8,16")
    planned = plan_of(sweep, places)
    assert len(planned.cells) == len({c.variant for c in planned.cells}) == 27
    assert planned.cells[0].settings == {"regen.alpha": 0.3, "regen.lam": 0.5, "regen.tokens": 4}
    counts = {stage: len(own) for stage, own in _fingerprints(planned.whole).items()}
    assert {stage: counts[stage] for stage in ("generate", "caption", "embed", "optimise", "draw")} == {
        "generate": 1, "caption": 1, "embed": 1, "optimise": 27, "draw": 27,
    }  # fmt: skip
    assert len(planned.whole.conditions) == 1
    assert len(planned.whole.cells) == 27


def test_a_cell_rests_on_the_stages_of_an_eval_with_its_settings(places: Places) -> None:
    planned = plan_of(_sweep("regen.alpha=0.3,0.7", "regen.tokens=4,8", defense="none,uce"), places)
    regens = ("resafe:alpha=0.3:tokens=4",)
    request = Request(defenses=("uce",), benches=("ring-a-bell-k77",), profile="shapes", regens=regens, limit=4)
    alone = make(request, card_roots(), places.data, FileHashes())
    cell = next(c for c in planned.cells if (c.defense, c.variant) == ("uce", regens[0]))
    own, single = _variant(planned.parts[0].plan, cell), _variant(alone, cell)
    assert [s.fingerprint for s in own.stages] == [s.fingerprint for s in single.stages]


def _variant(plan: Plan, cell: SweepCell):  # type: ignore[no-untyped-def]
    condition = next(c for c in plan.conditions if (c.defense, c.bench) == (cell.defense, cell.bench))
    return next(v for v in condition.variants if v.name == cell.variant)


def test_other_seeds_and_backbones_are_parts_of_one_plan(places: Places) -> None:
    planned = plan_of(_sweep("backbone.steps=3,4", seed="1,2", regen="none"), places)
    assert [(p.plan.backbone.name, p.plan.request.seed) for p in planned.parts] == [
        ("shapes:steps=3", 1), ("shapes:steps=4", 1), ("shapes:steps=3", 2), ("shapes:steps=4", 2),
    ]  # fmt: skip
    assert {c.variant for c in planned.cells} == {"base"}
    keys = [s.key for c in planned.whole.conditions for s in c.shards]
    assert len(set(keys)) == len(keys) == 4
    assert sorted(i for i, _ in planned.whole.cells) == [0, 1, 2, 3]


def test_cells_that_are_no_full_product_are_planned_pair_by_pair(places: Places) -> None:
    planned = plan_of(_sweep("defense.lam=0.3,0.5", "regen.alpha=0.5,0.7", mode="zip"), places)
    assert [(c.defense, c.variant) for c in planned.cells] == [
        ("uce:lam=0.3", "resafe:alpha=0.5"),
        ("uce:lam=0.5", "resafe"),
    ]
    variants = {c.defense: [v.name for v in c.variants] for c in planned.whole.conditions}
    assert variants == {"uce:lam=0.3": ["base", "resafe:alpha=0.5"], "uce:lam=0.5": ["base", "resafe"]}


def test_one_at_a_time_the_cards_own_values_are_one_cell(places: Places) -> None:
    cells = cells_of(_sweep("regen.alpha=0.3,0.7", "regen.tokens=4,8", mode="one-at-a-time"), places)
    assert [c.variant for c in cells] == ["resafe", "resafe:alpha=0.3", "resafe:tokens=4"]
    assert cells[0].settings == {"regen.alpha": 0.7, "regen.tokens": 8}
    assert cells[2].settings == {"regen.alpha": 0.7, "regen.tokens": 4}


def test_the_card_of_figure_12_has_the_default_and_each_axis(places: Places) -> None:
    card = load_card(SweepCard, "figure12", card_roots())
    cells = cells_of(Sweep(grid=CardGrid(card).under({}, {}, None), card="figure12", profile="paper"), places)
    default = {"regen.alpha": 0.7, "regen.lam": 1.0, "regen.tokens": 16}
    assert cells[0].settings == default
    changed = [{k: v for k, v in c.settings.items() if v != default[k]} for c in cells[1:]]
    assert [len(one) for one in changed] == [1] * (5 + 4 + 3)
    assert len({str(c) for c in cells}) == 13


@pytest.mark.parametrize(
    ("settings", "lists", "message"),
    [
        (["regen.alfa=0.3"], {}, "did you mean 'alpha'"),
        (["regen.alpha=3"], {}, "alpha: should be 1 or less"),
        (["regen.alpha=0.3,0.30"], {}, "two cells are the same"),
        (["regen.alpha=0.3"], {"regen": "none"}, "regenerator 'none' has no values"),
        (["regen.alpha=0.3"], {"regen": "resafe:alpha=0.5"}, "'alpha' is given twice"),
        (["defense.epochs=2"], {"defense": "rece+saferedir"}, "name the values of each in it, such as rece:epochs=2"),
        ([], {"defense": "rcee"}, "did you mean 'rece'"),
        ([], {"seed": "x"}, "--seed 'x' is no whole number"),
        (["seed=-1"], {}, "--seed '-1' is no whole number"),
        (["backbone.stepz=3"], {}, "did you mean 'steps'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_by_its_cards(
    settings: list[str], lists: dict[str, str], message: str, places: Places
) -> None:
    with pytest.raises(UserError) as error:
        cells_of(_sweep(*settings, **lists), places)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "lists", "message"),
    [
        (["defense.lamb=0.3"], {}, "did you mean 'lam'"),
        (["regen.tokens=99"], {}, "tokens is 99, and CLIP of profile 'shapes' has room for 22"),
        (["captioner=shapes-captionr"], {}, "did you mean 'shapes-captioner'"),
        ([], {"bench": "picasso"}, "does not know concept 'picasso'"),
    ],
)
def test_a_cell_that_no_model_can_do_is_refused_at_planning(
    settings: list[str], lists: dict[str, str], message: str, places: Places
) -> None:
    with pytest.raises(UserError) as error:
        plan_of(_sweep(*settings, **lists), places)
    assert message in str(error.value)


def test_a_sweeps_name_says_what_was_asked_for() -> None:
    one, again = _sweep("regen.alpha=0.3,0.5"), _sweep("regen.alpha=0.3,0.5")
    assert one.name == again.name
    others = [_sweep("regen.alpha=0.3,0.6"), _sweep("regen.alpha=0.3,0.5", defense="rece"), _sweep(seed="1")]
    assert len({s.name for s in (one, *others)}) == 4
    assert one.name.startswith("sweep_uce_ring-a-bell-k77_shapes_")


def test_work_counts_what_is_missing(places: Places) -> None:
    planned: SweepPlan = plan_of(_sweep("regen.alpha=0.3,0.5"), places)
    from harness.store.shards import Store

    work = planned.work(Store(Path(places.store)))
    assert work["generate"] == {"fingerprints": 1, "shards": 1, "missing_shards": 1}
    assert work["optimise"] == {"fingerprints": 2, "shards": 2, "missing_shards": 2}
