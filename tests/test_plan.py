"""Shards and fingerprints: what is shared between runs, and what must never be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from harness import cards
from harness.errors import UserError
from harness.fingerprint import FileHashes
from harness.plan import Plan, Request, make
from harness.store import Store, publish

CARD = """summary: s
concept: nudity
paper: none
editions:
  shapes:
    rows: {rows}
    source: package:datasets/{name}.csv
    licence: CC0-1.0
    made: by a test
    columns: {{prompt: [prompt], seed: [seed]}}
"""


def _bench(root: Path, name: str, rows: int) -> None:
    folder = root / "datasets"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(CARD.format(rows=rows, name=name))
    lines = [f"a blue circle {i},{i}" for i in range(rows)]
    (folder / f"{name}.csv").write_text("\n".join(["prompt,seed", *lines]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    _bench(folder, "many", 150)
    _bench(folder, "few", 5)
    return folder


def _plan(root: Path, **choices: object) -> Plan:
    request = Request(defenses=("uce",), benches=("many",), profile="shapes")
    return make(replace(request, **choices), cards.roots(root), root / "data", FileHashes())  # type: ignore[arg-type]


def _stages(plan: Plan) -> dict[tuple[str, str], str]:
    return {(c.defense, s.stage): s.fingerprint for c in plan.chains for s in c.stages}


def test_rows_are_cut_once_into_shards_of_the_profiles_size(root: Path) -> None:
    assert [[s.rows.num_rows for s in c.shards] for c in _plan(root).chains] == [[64, 64, 22]] * 2


def test_none_stands_beside_unless_it_is_switched_off(root: Path) -> None:
    assert [c.defense for c in _plan(root).chains] == ["none", "uce"]
    assert [c.defense for c in _plan(root, baseline=False).chains] == ["uce"]
    assert [c.defense for c in _plan(root, defenses=("none",)).chains] == ["none"]


def test_a_limited_run_shares_whole_shards_and_nothing_else(root: Path) -> None:
    whole = {s.key for c in _plan(root).chains for s in c.shards}
    limited = [s.key for s in _plan(root, limit=100).chains[0].shards]
    assert [key in whole for key in limited] == [True, False]


def test_fingerprints_do_not_depend_on_the_rows(root: Path) -> None:
    assert _stages(_plan(root)) == _stages(_plan(root, limit=3)) == _stages(_plan(root, benches=("few",)))


def test_another_seed_changes_shards_not_fingerprints(root: Path) -> None:
    a, b = _plan(root), _plan(root, seed=7)
    assert _stages(a) == _stages(b)
    assert not {s.key for c in a.chains for s in c.shards} & {s.key for c in b.chains for s in c.shards}
    assert set(b.chains[0].shards[0].rows["seed"].to_pylist()) == {7}


def test_a_changed_card_value_changes_that_defense_and_what_follows_it_only(root: Path) -> None:
    before = _stages(_plan(root))
    text = cards.load("defense", "uce", cards.roots(None)).path.read_text()
    (root / "pipelines/defenses").mkdir(parents=True)
    (root / "pipelines/defenses/uce.yaml").write_text(text.replace("lam: 0.5", "lam: 0.6"))
    after = _stages(_plan(root))
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key[0] == "uce"}


def test_changed_words_about_a_card_change_nothing(root: Path) -> None:
    before = _stages(_plan(root))
    text = cards.load("backbone", "shapes", cards.roots(None)).path.read_text()
    (root / "pipelines/backbones").mkdir(parents=True)
    (root / "pipelines/backbones/shapes.yaml").write_text(text.replace("summary: ", "summary: now "))
    assert _stages(_plan(root)) == before


@pytest.mark.parametrize(("key", "value"), [("steps", 3), ("micro_batch", 2)])
def test_a_changed_backbone_setting_changes_every_stage(root: Path, key: str, value: int) -> None:
    before = _stages(_plan(root))
    card = cards.load("backbone", "shapes", cards.roots(None))
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
    assert [(c.concept, c.defended) for c in other.chains] == [("nudity", "nudity"), ("nudity", "violence")]


def test_missing_is_what_the_store_does_not_have(root: Path, tmp_path: Path) -> None:
    plan, store = _plan(root, limit=100), Store.open(tmp_path / "store")
    assert plan.missing(store) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for stage in plan.chains[0].stages:
        publish(store.path(stage.stage, stage.fingerprint, plan.chains[0].shards[1].key), pa.table({"a": [1]}))
    assert plan.missing(store) == [(0, 0), (1, 0), (1, 1)]


def test_ids_may_name_rows_of_several_benchmarks(root: Path) -> None:
    plan = _plan(root, benches=("many", "few"), ids=("few/00002", "many/00149"), baseline=False)
    assert [c.shards[0].rows["row_id"].to_pylist() for c in plan.chains] == [["many/00149"], ["few/00002"]]


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
