"""Whole journeys with ReSafe: images made anew, killed half way and repeated, and images from elsewhere."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from desk import Desk, Done

from harness.shapes import world
from harness.store.schema import LINEAGE

QUICK = "resafe:iterations=40:micro_batch=4"
EVAL = ("eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--json")


def _desk(made: Desk) -> Desk:
    made.profile(regenerators=QUICK, scorers="shapes_oracle, shapes_kept@same/base")
    card = made.cards / "pipelines/profiles/small.yaml"
    card.write_text(card.read_text() + "means: [shapes_kept_background@same/base]\n")
    return made


@pytest.fixture(scope="module")
def reference(desks: Callable[[str], Desk]) -> tuple[Desk, Done]:
    """One undisturbed inline run."""
    desk = _desk(desks("regen-reference"))
    done = desk.run(*EVAL, "--executor", "inline")
    assert done.code == 0, done.err
    return desk, done


def _rows(done: Done) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    return rows


def test_every_image_is_made_anew_beside_its_base(reference: tuple[Desk, Done]) -> None:
    rows = _rows(reference[1])
    base = {r["row_id"]: r for r in rows if r["variant"] == "base"}
    anew = {r["row_id"]: r for r in rows if r["variant"] == QUICK}
    assert len(rows) == 20
    assert base.keys() == anew.keys()
    assert all(row[name] is None for row in base.values() for name in LINEAGE.names)
    for key, row in anew.items():
        assert row["seed"] == base[key]["seed"]
        assert row["image_sha256"] != base[key]["image_sha256"]
        assert (row["alpha"], row["lam"], row["tokens"], row["iterations"]) == (0.7, 1.0, 8, 40)
        assert -1 <= row["cosine"] <= 1
        assert row["unsafe_caption"]
        assert row["safe_caption"]
        assert row["optimized_prompt"]
        assert "star" not in row["safe_caption"]
        if "star" in row["unsafe_caption"]:
            assert any("star" in component for component in row["unsafe_components"])


def test_regeneration_takes_most_stars_away_and_counts_what_passes_through(reference: tuple[Desk, Done]) -> None:
    cells = reference[1].json["cells"]
    asr = {c["variant"]: c for c in cells if c["metric"] == "asr"}
    assert asr[QUICK]["k"] < asr["base"]["k"] / 2
    (through,) = (c for c in cells if c["metric"] == "pass_through")
    rows = _rows(reference[1])
    before = {r["row_id"] for r in rows if r["variant"] == "base" and r["shapes_oracle_star"] >= 1}
    after = {r["row_id"] for r in rows if r["variant"] == QUICK and r["shapes_oracle_star"] >= 1}
    assert (through["k"], through["n"]) == (len(before & after), len(before))
    (flagged,) = (c for c in cells if c["metric"] == "asr_if_flagged")
    assert (flagged["k"], flagged["n"]) == (len(before & after), 10)
    assert asr[QUICK]["compared"]["against"] == "none/base"
    assert asr[QUICK]["method"]["iterations"] == 40


def test_what_is_kept_of_the_flagged_images_is_counted_by_itself(reference: tuple[Desk, Done]) -> None:
    rows = _rows(reference[1])
    before = {r["row_id"] for r in rows if r["variant"] == "base" and r["shapes_oracle_star"] >= 1}
    kept = [r["shapes_kept_background@same/base"] for r in rows if r["variant"] == QUICK and r["row_id"] in before]
    found = {c["metric"]: c for c in reference[1].json["cells"] if c["variant"] == QUICK}
    assert (found["shapes_kept_background_of_flagged"]["k"], found["shapes_kept_background_of_flagged"]["n"]) == (
        sum(map(bool, kept)),
        len(kept),
    )
    assert found["shapes_kept_background"]["n"] == 10


def test_the_papers_other_regenerators_go_the_same_way(desk: Desk) -> None:
    few = "iterations=3:micro_batch=4"
    chosen = f"pez:{few},resafe-image-only:{few},resafe-text-only:{few},simple-caption"
    done = desk.run(*EVAL, "--limit", "3", "--regen", chosen, "--executor", "inline")
    assert done.code == 0, done.err
    rows = {(r["variant"], r["row_id"]): r for r in _rows(done)}
    for variant, alpha, captioned in (("pez", 0, False), ("resafe-image-only", 0, True), ("resafe-text-only", 1, True)):
        row = rows[f"{variant}:{few}", "ten/00000"]
        assert row["alpha"] == alpha
        assert (row["safe_caption"] is not None) == captioned
        assert (row["already_safe"] is not None) == captioned
        assert row["optimized_prompt"]
    simple = rows["simple-caption", "ten/00000"]
    assert simple["safe_caption"]
    assert simple["optimized_prompt"] is None
    assert len({r["image_sha256"] for (_, row_id), r in rows.items() if row_id == "ten/00000"}) == 5


@pytest.mark.ray
def test_killing_the_run_in_the_search_and_repeating_gives_the_same_files(
    reference: tuple[Desk, Done], desk: Desk
) -> None:
    _desk(desk)
    process = desk.start(*EVAL, "--workers", "1")
    deadline = time.monotonic() + 240
    while not list(desk.store.glob("embed/*/*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = desk.shards()
    assert there.items() < reference[0].shards().items()
    done = desk.run(*EVAL)
    assert done.code == 0, done.err
    assert desk.shards() == reference[0].shards()
    assert Path(done.json["paths"]["scores"]).read_bytes() == Path(reference[1].json["paths"]["scores"]).read_bytes()


@pytest.mark.slow
def test_a_sweep_shares_generation_captions_and_features(reference: tuple[Desk, Done], desk: Desk) -> None:
    _desk(desk)
    sweep = ",".join(
        f"resafe:alpha={a}:lam={lam}:tokens=4:iterations=3:micro_batch=4" for a in (0.2, 0.5) for lam in (0.5, 2)
    )
    done = desk.run(*EVAL, "--limit", "4", "--regen", sweep, "--executor", "inline")
    assert done.code == 0, done.err
    fingerprints = {stage: len(list((desk.store / stage).iterdir())) for stage in
                    ("generate", "caption", "embed", "optimise", "draw")}  # fmt: skip
    assert fingerprints == {"generate": 1, "caption": 1, "embed": 1, "optimise": 4, "draw": 4}


def test_images_from_elsewhere_go_the_same_way(desk: Desk) -> None:
    _desk(desk)
    rng = random.Random(3)
    folder = desk.root / "mine"
    (folder / "deeper").mkdir(parents=True)
    for i in range(3):
        world.render(world.sample_scene(rng), rng).save(folder / f"{'deeper/' if i else ''}p{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    words = ("--images", str(folder), "--concept", "nudity", "--profile", "small", "--executor", "inline", "--json")
    done = desk.run("regen", *words, "--max-errors", "50%", "--save", str(desk.root / "safer"))
    assert done.code == 0, done.err
    rows = _rows(done)
    assert {r["row_id"] for r in rows} == {f"images-mine/{n}" for n in
                                           ("broken.png", "p0.png", "deeper/p1.png", "deeper/p2.png")}  # fmt: skip
    assert {(r["variant"], r["error"]) for r in rows if "broken" in r["row_id"]} == {
        ("base", "undecodable"),
        (QUICK, "base:undecodable"),
    }
    assert all(r["regen_backbone"] == "shapes:micro_batch=4" for r in rows if r["variant"] == QUICK)
    saved = sorted(p.relative_to(desk.root / "safer").as_posix() for p in (desk.root / "safer").rglob("*.png"))
    assert [s.partition("/")[2] for s in saved] == ["deeper/p1.png", "deeper/p2.png", "p0.png"]

    table = pa.table({"image": [(folder / "p0.png").read_bytes()], "id": ["p0.png"], "seed": [7]})
    pq.write_table(table, desk.root / "mine.parquet")
    words = ("--images", str(desk.root / "mine.parquet"), *words[2:])
    again = desk.run("regen", *words)
    assert again.code == 0, again.err
    (base,) = (r for r in _rows(again) if r["variant"] == "base")
    (same,) = (r for r in rows if r["variant"] == "base" and r["row_id"].endswith("/p0.png"))
    assert base["image_sha256"] == same["image_sha256"]
    assert base["seed"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--regen", "resaf"), "did you mean 'resafe'"),
        (("--regen", "resafe:alfa=1"), "did you mean 'alpha'"),
        (("--regen", "resafe:alpha=2"), "alpha"),
        (("--regen", "resafe:alpha"), "KEY=VALUE"),
        (("--regen", "resafe:alpha=0.1:alpha=0.2"), "given twice"),
        (("--regen", "none,resafe"), "'none' beside"),
        (("--regen", "pez:alpha=0.5"), "caption"),
    ],
)
def test_a_mistaken_regenerator_is_one_line_and_writes_nothing(
    desk: Desk, words: tuple[str, ...], message: str
) -> None:
    done = desk.run(*EVAL, *words)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not desk.store.exists()
