"""Stored results of other code or libraries, taken knowingly and stamped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from desk import Desk

from harness.pipeline.evaluate import Budget, Finished, evaluate, prepare
from harness.pipeline.executor import Resources
from harness.pipeline.record import request_of
from harness.pipeline.request import Places, Request
from harness.store import fingerprint
from harness.store.shards import Store, is_complete

REQUEST = Request(defenses=("sd-np",), benches=("ten",), profile="small", regens=("none",), limit=2)
BOTH = dataclasses.replace(REQUEST, accept_change=("code", "libraries"))


class World:
    """A store with a finished run, and today's code made another than the stored one."""

    def __init__(self, root: Path) -> None:
        self.places = Places(store=root / "store", out=root / "runs", data=root / "data", cards=root / "cards")

    def finish(self) -> World:
        self.first = self.run(REQUEST)
        return self

    def run(self, request: Request) -> Finished:
        return evaluate(request, self.places, Resources(executor="inline"), Budget(rows=0), lambda _: None, "a test")

    def age(self, stages: tuple[str, ...], change: dict[str, Any]) -> None:
        """Rewrite the store as if ``stages`` had been made with other values in their keys; what follows is renamed."""
        renamed: dict[str, str] = {}
        for condition in self.first.plan.conditions:
            for spec in condition.stages:
                key = json.loads((self.places.store / spec.stage / spec.fingerprint / "stage.json").read_text())
                text = json.dumps(key)
                for now, then in renamed.items():
                    text = text.replace(now, then)
                key = json.loads(text)
                if spec.stage in stages:
                    key |= {n: key[n] | v if isinstance(v, dict) else v for n, v in change.items()}
                renamed[spec.fingerprint] = fingerprint.digest(key)
                folder = self.places.store / spec.stage / spec.fingerprint
                if spec.fingerprint != renamed[spec.fingerprint] and folder.exists():
                    (folder / "stage.json").write_text(json.dumps(key))
                    folder.rename(folder.with_name(renamed[spec.fingerprint]))
        shutil.rmtree(self.places.out)


@pytest.fixture(scope="module")
def finished(desks: Callable[[str], Desk]) -> World:
    desk = desks("finished")
    desk.profile(scorers="shapes_oracle, shapes_clip@none/base")
    return World(desk.root).finish()


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.places.store.parent, tmp_path / "desk")
    copy = World(tmp_path / "desk")
    copy.first = finished.first
    return copy


def _shards(places: Places) -> set[Path]:
    return set(places.store.glob("*/*/*.parquet"))


def test_stored_results_of_other_code_are_taken_only_when_asked_and_stamped(world: World) -> None:
    world.age(("generate",), {"code": "0" * 16, "libraries": {"torch": "1.0"}})
    before, store = _shards(world.places), Store(world.places.store)
    assert prepare(REQUEST, world.places).missing(store)
    assert prepare(dataclasses.replace(BOTH, accept_change=("code",)), world.places).missing(store)
    assert prepare(dataclasses.replace(BOTH, accept_change=("libraries",)), world.places).missing(store)
    made = prepare(BOTH, world.places)
    assert not made.missing(store)
    done = world.run(BOTH)
    assert done.outcome is None
    assert _shards(world.places) == before
    for cell in done.cells:
        said = cell.settings["accepted change"]
        assert "generate: code 0000000000000000 instead of " in said
        assert "libraries.torch 1.0 instead of " in said
    assert [(c.metric, c.k, c.n) for c in done.cells] == [(c.metric, c.k, c.n) for c in world.first.cells]
    record = json.loads((done.run / "run.json").read_text())
    stamps = [s["accepted"] for c in record["conditions"] for s in c["stages"] if s["stage"] == "generate"]
    assert [{row["key"] for row in rows} for rows in stamps] == [{"code", "libraries.torch"}] * 2
    assert "instead of" in (done.run / "report.md").read_text()
    assert request_of(record).accept_change == ("code", "libraries")


@pytest.mark.parametrize("change", [{"weights": {"unet": "other"}}, {"guard": "other"}, {"schema": -1}])
def test_other_weights_and_values_are_never_taken(world: World, change: dict[str, Any]) -> None:
    world.age(("generate",), change)
    made = prepare(BOTH, world.places)
    assert made.missing(Store(world.places.store))
    assert not any(s.accepted for c in made.conditions for s in c.stages)


def test_a_scorer_that_is_the_same_reads_the_images_that_were_taken(world: World) -> None:
    """Nothing but the images is old: what scored them is found under the name that follows from theirs."""
    world.age(("generate",), {"code": "0" * 16})
    made = prepare(dataclasses.replace(BOTH, accept_change=("code",)), world.places)
    assert {s.stage for c in made.conditions for s in c.stages if s.accepted} == {"generate"}
    assert not made.missing(Store(world.places.store))


def test_what_is_not_complete_is_computed_anew_and_not_mixed(world: World) -> None:
    world.age(("generate",), {"code": "0" * 16})
    store = Store(world.places.store)
    made = prepare(dataclasses.replace(BOTH, accept_change=("code",)), world.places)
    condition = made.conditions[0]
    image = condition.variants[0].images
    store.path(image.stage, image.fingerprint, condition.shards[0].key).unlink()
    again = prepare(dataclasses.replace(BOTH, accept_change=("code",)), world.places)
    fresh, kept = (c.variants[0].images for c in again.conditions)
    assert not fresh.accepted
    assert fresh.fingerprint == world.first.plan.conditions[0].variants[0].images.fingerprint
    assert kept.accepted
    assert is_complete(store.path(kept.stage, kept.fingerprint, again.conditions[1].shards[0].key))


@pytest.mark.parametrize("word", ["weights", "cod", "cards"])
def test_another_word_is_refused(desk: Desk, word: str) -> None:
    done = desk.run(
        "eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--accept-change", f"code,{word}"
    )
    assert done.code == 2
    assert f"--accept-change {word!r}" in done.err
    assert "code, libraries" in done.err
