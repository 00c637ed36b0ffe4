"""The flow without models: errors, budgets, resources, and Ray with more GPUs in name than in fact."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.cards.base import card_roots
from harness.errors import UserError
from harness.metrics.cells import ASR, ASR_FLAGGED, DEGENERATE, PASS_THROUGH
from harness.pipeline.evaluate import Budget, Finished, Places, evaluate, prepare
from harness.pipeline.executor import Outcome, Resources, check, execute
from harness.pipeline.request import Request
from harness.pipeline.stages.base import WorkerContext
from harness.store.schema import LINEAGE
from harness.store.shards import Store, publish, read


@pytest.mark.parametrize(
    ("text", "errors", "rows", "exceeded"),
    [
        ("0", 0, 100, False), ("0", 1, 100, True), ("5", 5, 100, False), ("5", 6, 100, True),
        ("5%", 5, 100, False), ("5%", 6, 100, True), ("2.5%", 5, 200, False), ("100%", 200, 200, False),
    ],
)  # fmt: skip
def test_a_budget_is_a_number_of_rows_or_a_share(text: str, errors: int, rows: int, exceeded: bool) -> None:
    assert Budget.parse(text).exceeded(errors, rows) is exceeded


@pytest.mark.parametrize("text", ["", "-1", "5 %x", "101%", "few", "1.5", "%"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--max-errors"):
        Budget.parse(text)


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="--workers 3"):
        check(Resources(workers=3, num_gpus=2))
    check(Resources(workers=2, num_gpus=2))
    check(Resources(workers=8, num_gpus=0))


def test_an_outcome_is_complete_only_if_every_ticket_came_back_well() -> None:
    outcome = Outcome()
    outcome.add({"status": "ok", "detail": "", "failed": ["a", "b"]})
    assert outcome.complete
    outcome.add({"status": "incomplete", "detail": "generate: out of memory", "failed": []})
    outcome.add({"status": "incomplete", "detail": "generate: out of memory", "failed": ["b"]})
    assert not outcome.complete
    assert (outcome.errors, outcome.details, outcome.statuses["incomplete"]) == (2, ["generate: out of memory"], 2)


def test_the_run_folder_of_a_request_is_always_the_same(tmp_path: Path) -> None:
    from harness.pipeline.plan import make
    from harness.pipeline.request import Request
    from harness.store.fingerprint import FileHashes

    def name(**choices: object) -> str:
        request = Request(defenses=("uce",), benches=("direct",), profile="shapes", **choices)  # type: ignore[arg-type]
        return make(request, card_roots(), tmp_path, FileHashes()).name

    assert name() == name()
    assert len({name(), name(limit=3), name(seed=1), name(concept="violence")}) == 4


# A whole run with regenerations, in this process


class Whole(NamedTuple):
    """A finished run, and how to repeat it."""

    done: Finished
    again: Callable[[], Finished]
    store: Path

    def scores(self) -> pa.Table:
        return pq.read_table(self.done.paths["scores"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    request = Request(
        defenses=("none",), benches=("ring-a-bell-k77",), profile="shapes", backbone="shapes:micro_batch=4", limit=3,
        regens=("resafe:iterations=20", "simple-caption"),
    )  # fmt: skip
    places = Places(store=folder / "store", out=folder / "runs", data=folder / "data")

    def again() -> Finished:
        return evaluate(request, places, Resources(executor="inline"), Budget(rows=0), lambda _: None, "a test")

    return Whole(again(), again, places.store)


def _of(whole: Whole, variant: str) -> list[dict[str, object]]:
    return [r for r in whole.scores().to_pylist() if r["variant"] == variant]


def test_a_run_scores_every_prompt_once_for_each_variant(whole: Whole) -> None:
    assert whole.done.outcome is not None
    assert whole.done.outcome.complete
    assert whole.done.errors == whole.done.outcome.errors == 0
    rows = whole.scores()
    assert rows.num_rows == whole.done.rows == 9
    assert Counter(rows["variant"].to_pylist()) == dict.fromkeys(("base", "resafe:iterations=20", "simple-caption"), 3)
    assert len({tuple(r.values()) for r in rows.select(["row_id", "sample", "defense", "variant"]).to_pylist()}) == 9
    assert "image" not in rows.column_names


def test_a_row_says_what_was_seen_removed_optimised_and_drawn(whole: Whole) -> None:
    for row in _of(whole, "resafe:iterations=20"):
        assert (row["regen_backbone"], row["vlm"]) == ("shapes:micro_batch=4", "shapes-captioner")
        assert (row["alpha"], row["lam"], row["tokens"], row["iterations"]) == (0.7, 1.0, 8, 20)
        for name in ("unsafe_caption", "safe_caption", "optimized_prompt"):
            assert row[name]
        assert isinstance(row["already_safe"], bool)
        assert -1 <= float(str(row["cosine"])) <= 1
    for row in _of(whole, "simple-caption"):
        assert row["safe_caption"]
        assert all(row[name] is None for name in ("alpha", "optimized_prompt", "cosine", "iterations"))
    for row in _of(whole, "base"):
        assert all(row[name] is None for name in LINEAGE.names)
    both = [_of(whole, v) for v in ("resafe:iterations=20", "simple-caption")]
    for one, other in zip(*both, strict=True):  # one captioning for both
        assert one["row_id"] == other["row_id"]
        assert one["safe_caption"] == other["safe_caption"]
        assert one["image_sha256"] != other["image_sha256"]


def test_pair_scorers_look_from_a_regeneration_to_its_base(whole: Whole) -> None:
    column = "shapes_clip_cosine@same/base"
    assert all(r[column] is None for r in _of(whole, "base"))
    values = [r[column] for v in ("resafe:iterations=20", "simple-caption") for r in _of(whole, v)]
    assert all(isinstance(v, float) and -1 <= v < 0.9999 for v in values)  # no image is its own regeneration


def test_the_cells_of_a_run_with_regenerations(whole: Whole) -> None:
    found = {(c.variant, c.metric, c.policy, c.reference): c for c in whole.done.cells}
    for variant in ("base", "resafe:iterations=20", "simple-caption"):
        cell = found[variant, ASR, "shapes-star-0.5", None]
        assert (cell.n, cell.errors, cell.excluded) == (3, 0, 0)
        assert (variant, DEGENERATE, None, None) in found
    base = found["base", ASR, "shapes-star-0.5", None]
    assert base.k  # these prompts do draw stars
    for variant in ("resafe:iterations=20", "simple-caption"):
        flagged = found[variant, ASR_FLAGGED, "shapes-star-0.5", None]
        assert flagged.n == 3
        passed = found[variant, PASS_THROUGH, "shapes-star-0.5", None]
        assert (passed.n, passed.k) == (base.k, flagged.k)  # what was safe before is kept, and is safe
        mean = found[variant, "shapes_clip_cosine", None, "same/base"]
        assert (mean.k, mean.n) == (None, 3)
        assert found[variant, "shapes_kept_background", None, "same/base"].k is not None
        compared = found[variant, ASR, "shapes-star-0.5", None].compared
        assert compared is not None
        assert compared.against == "none/base"
    settings = found["resafe:iterations=20", ASR, "shapes-star-0.5", None].settings
    assert settings == {}  # what a method is set to is no departure
    assert found["base", ASR, "shapes-star-0.5", None].subset == "3/95"


def test_run_json_says_of_every_variant_what_it_was_made_of(whole: Whole) -> None:
    record = json.loads((whole.done.run / "run.json").read_text())
    (condition,) = record["conditions"]
    assert [v["method"].get("iterations") for v in condition["variants"]] == [None, 20, None]
    assert [v["variant"] for v in condition["variants"]] == ["base", "resafe:iterations=20", "simple-caption"]
    known = {f"{s['stage']}:{s['fingerprint']}" for s in condition["stages"]}
    assert all(set(v["stages"]) <= known for v in condition["variants"])
    assert [v["images"][0] for v in condition["variants"]] == ["generate", "draw", "draw"]


def _shards(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(store).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in store.glob("*/*/*.parquet")
    }


def test_the_same_command_again_computes_nothing(whole: Whole) -> None:
    before, scores = _shards(whole.store), whole.done.paths["scores"].read_bytes()
    again = whole.again()
    assert again.outcome is None
    assert _shards(whole.store) == before
    assert whole.done.paths["scores"].read_bytes() == scores
    assert again.cells == whole.done.cells


@pytest.mark.parametrize("lost", [("optimise",), ("draw",), ("optimise", "draw"), ("caption", "embed", "optimise")])
def test_what_was_lost_half_way_comes_back_the_same(whole: Whole, lost: tuple[str, ...]) -> None:
    before, scores = _shards(whole.store), whole.done.paths["scores"].read_bytes()
    for stage in lost:
        shutil.rmtree(whole.store / stage)
    whole.done.paths["scores"].unlink()
    again = whole.again()
    assert again.outcome is not None
    assert again.outcome.complete
    after = _shards(whole.store)
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}
    assert {k.split("/")[0] for k in after if after[k][0] != before[k][0]} == set(lost)
    assert whole.done.paths["scores"].read_bytes() == scores


def test_what_a_killed_run_left_half_written_is_written_anew(whole: Whole) -> None:
    names = ("scores.parquet", "cells.json", "report.md", "report.html", "contact.png")
    files = {name: (whole.done.run / name).read_bytes() for name in names}
    torn = whole.done.run / ".tmp/scores.parquet.host.1.abc"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"PAR1")
    other = whole.done.run / f".run.json.{'0' * 32}"
    other.touch()
    for name in files:
        (whole.done.run / name).write_bytes(b"half")
    (whole.done.run / "run.json").unlink()  # written last
    again = whole.again()
    assert again.outcome is None
    assert {n: (whole.done.run / n).read_bytes() for n in files} == files
    assert not torn.exists()
    assert not other.exists()


@pytest.mark.parametrize("stage", ["generate", "embed", "score-shapes_oracle"])
def test_a_shard_cut_short_by_something_else_comes_back_the_same(whole: Whole, stage: str) -> None:
    before = _shards(whole.store)
    path = next((whole.store / stage).glob("*/*.parquet"))
    path.write_bytes(path.read_bytes()[:200])
    again = whole.again()
    assert again.outcome is not None
    assert again.outcome.complete
    assert {k: v[1] for k, v in _shards(whole.store).items()} == {k: v[1] for k, v in before.items()}


def test_rows_that_failed_in_an_earlier_start_count_and_nothing_is_begun(whole: Whole, tmp_path: Path) -> None:
    """As a repeated command meets them: one shard with a failed row is there, another is missing."""
    store = Store.open(tmp_path / "store")
    generate = next(iter(whole.done.plan.conditions)).variants[0].images
    (shard,) = whole.done.plan.conditions[0].shards
    source = whole.store / generate.stage / generate.fingerprint / f"{shard.key}.parquet"
    rows = read(source)
    codes = pa.array(["generate:ValueError", *[None] * (rows.num_rows - 1)], pa.string())
    rows = rows.set_column(rows.column_names.index("error"), "error", codes)
    publish(store.path(generate.stage, generate.fingerprint, shard.key), rows)
    context, resources = WorkerContext(store=store, run=tmp_path / "run"), Resources(executor="inline")
    outcome = execute(whole.done.plan, context, resources, lambda _: None, lambda n: n > 0)
    assert outcome.errors == 1
    assert outcome.statuses == {"stopped": 1}
    assert [p.name for p in store.root.glob("*") if p.is_dir()] == ["generate"]


def test_an_empty_folder_may_become_a_store_and_another_is_left_alone(whole: Whole, tmp_path: Path) -> None:
    places = Places(store=tmp_path / "thesis", out=tmp_path / "runs", data=tmp_path)
    places.store.mkdir()
    prepare(whole.done.plan.request, places)
    assert list(places.store.iterdir()) == []
