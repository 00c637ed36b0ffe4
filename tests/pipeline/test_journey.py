"""Whole journeys through the command line: inline, on a real local Ray, killed and repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from desk import Desk, Done

EVAL = ("eval", "--defense", "uce", "--bench", "ten", "--profile", "small", "--json")  # uce: built in a second
CELL_KEYS = {
    "profile", "backbone", "defense", "variant", "bench", "concept", "metric", "scorer", "policy",
    "k", "n", "errors", "excluded", "low", "high",
}  # fmt: skip


class Reference:
    """One undisturbed inline run that the others are compared with."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.done = desk.run(*EVAL, "--executor", "inline")
        assert self.done.code == 0, self.done.err

    def scores(self) -> bytes:
        return Path(self.done.json["paths"]["scores"]).read_bytes()


@pytest.fixture(scope="session")
def reference(desks: Callable[[str], Desk]) -> Reference:
    return Reference(desks("reference"))


def _cells(done: Done, metric: str = "asr") -> dict[str, dict[str, Any]]:
    return {c["defense"]: c for c in done.json["cells"] if c["metric"] == metric}


def _hashes(done: Done) -> dict[tuple[str, str], str | None]:
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    return {(r["defense"], r["row_id"]): r["image_sha256"] for r in rows}


def _same(desk: Desk, done: Done, reference: Reference) -> None:
    assert done.code == 0, done.err
    assert desk.shards() == reference.desk.shards()
    assert Path(done.json["paths"]["scores"]).read_bytes() == reference.scores()


def test_an_eval_ends_with_one_json_object_and_files(reference: Reference) -> None:
    found = reference.done.json
    assert set(found) == {"run", "profile", "cells", "paths"}
    assert all(set(c) >= CELL_KEYS for c in found["cells"])
    cells = _cells(reference.done)
    assert set(cells) == {"none", "uce"}
    assert {(c["n"], c["errors"], c["excluded"]) for c in cells.values()} == {(10, 0, 0)}
    assert cells["none"]["k"] >= 6  # 8 of the 10 prompts ask for a star
    assert all(Path(p).exists() for p in found["paths"].values())
    table = pq.read_table(found["paths"]["scores"])
    assert table.num_rows == 20
    assert "image" not in table.column_names
    assert table["image_sha256"].null_count == 0


def test_the_defense_changes_images_and_the_baseline_does_not_know_of_it(reference: Reference) -> None:
    hashes = _hashes(reference.done)
    changed = [i for i in range(10) if hashes["none", f"ten/{i:05d}"] != hashes["uce", f"ten/{i:05d}"]]
    assert len(changed) >= 8


def test_a_finished_run_answers_without_models(reference: Reference) -> None:
    code = (
        "import sys, runpy\nsys.argv = ['harness', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('harness', run_name='__main__')\nexcept SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'ray', 'diffusers') if m in sys.modules])"
    )
    command = reference.desk.arguments(*EVAL)
    done = subprocess.run(
        [command[0], "-c", code, *command[3:]], capture_output=True, text=True, cwd=reference.desk.root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_rows_draw_the_same_whatever_their_batch_mates_and_order(reference: Reference, desk: Desk) -> None:
    lines = (desk.cards / "datasets/ten.csv").read_text().splitlines()
    (desk.cards / "datasets/ten.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    desk.profile(shard_rows=3)
    done = desk.run(*EVAL, "--executor", "inline")
    assert done.code == 0, done.err

    def by_prompt(path: str) -> dict[tuple[str, str], str]:
        return {(r["defense"], r["prompt"]): r["image_sha256"] for r in pq.read_table(path).to_pylist()}

    assert by_prompt(done.json["paths"]["scores"]) == by_prompt(reference.done.json["paths"]["scores"])


def test_a_limited_run_gives_the_same_images_under_a_stamp(reference: Reference, desk: Desk) -> None:
    done = desk.run(*EVAL, "--limit", "3", "--executor", "inline")
    assert {c["subset"] for c in done.json["cells"]} == {"3/10"}
    few = _hashes(done)
    assert len(few) == 6
    assert few.items() <= _hashes(reference.done).items()


def test_a_failing_row_is_reported_and_the_rest_scored(desk: Desk, reference: Reference) -> None:
    desk.bench("ten", widths={4: 33})  # the backbone refuses a width that is not a multiple of 8
    done = desk.run(*EVAL, "--executor", "inline", "--max-errors", "2")
    assert done.code == 0, done.err
    assert {(c["n"], c["errors"]) for c in _cells(done).values()} == {(9, 1)}
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    assert [r["error"] for r in rows if r["row_id"] == "ten/00004"] == ["generate:ValueError"] * 2
    good = {key: value for key, value in _hashes(done).items() if value is not None}
    assert len(good) == 18
    assert good.items() <= _hashes(reference.done).items()


def test_too_many_errors_are_exit_code_three(desk: Desk) -> None:
    desk.bench("ten", widths={4: 33})
    done = desk.run(*EVAL, "--executor", "inline", "--max-errors", "0")
    assert done.code == 3
    assert "--max-errors 0" in done.err or "not complete" in done.err


def test_the_guard_excludes_and_counts(desk: Desk) -> None:
    desk.bench(
        "ten", ["a red star on a white background", "a child on a white background", "a blue ring on a gray background"]
    )
    done = desk.run(*EVAL, "--executor", "inline")
    assert {(c["n"], c["excluded"]) for c in _cells(done).values()} == {(2, 1)}
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    assert all(r["image_sha256"] is None for r in rows if r["excluded"])


@pytest.mark.ray
def test_ray_gives_the_same_files_as_inline(reference: Reference, desk: Desk) -> None:
    done = desk.run(*EVAL, "--workers", "2")
    _same(desk, done, reference)


@pytest.mark.ray
def test_killing_the_driver_and_repeating_gives_the_same_files(reference: Reference, desk: Desk) -> None:
    process = desk.start(*EVAL, "--workers", "1")
    _wait_for(lambda: len(desk.shards()) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = desk.shards()
    assert before.items() <= reference.desk.shards().items()
    assert len(before) < len(reference.desk.shards())
    _same(desk, desk.run(*EVAL), reference)


@pytest.mark.ray
def test_killing_an_actor_costs_nothing(reference: Reference, desk: Desk) -> None:
    process = desk.start(*EVAL, "--workers", "1")
    _wait_for(lambda: len(desk.shards()) >= 1, process)
    actors = [p for p in psutil.Process(process.pid).children(recursive=True) if "RemoteActor" in " ".join(p.cmdline())]
    assert actors, "no actor to kill"
    actors[0].kill()
    out, err = process.communicate(timeout=300)
    _same(desk, Done(process.returncode, out, err), reference)


@pytest.mark.ray
def test_an_interrupt_stops_cleanly_and_the_next_run_goes_on(reference: Reference, desk: Desk) -> None:
    process = desk.start(*EVAL, "--workers", "1")
    _wait_for(lambda: len(desk.shards()) >= 1, process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "stopping" in err
    _same(desk, desk.run(*EVAL, "--executor", "inline"), reference)


def _wait_for(reached: Callable[[], bool], process: Any, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "--defense", "rcee", "--bench", "ten", "--profile", "small"), "did you mean 'rece'"),
        (("eval", "--defense", "rece", "--bench", "tenn", "--profile", "small"), "did you mean 'ten'"),
        ((*EVAL, "--limit", "0"), "--limit 0"),
        ((*EVAL, "--max-errors", "few"), "--max-errors 'few'"),
        ((*EVAL, "--executor", "rayy"), "did you mean 'ray'"),
        ((*EVAL, "--concept", "violense"), "violence"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(desk: Desk, words: tuple[str, ...], message: str) -> None:
    done = desk.run(*words)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert not desk.store.exists()
    assert not desk.out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,seed,width\n", "no rows"),
        ("prompt,seed,width\na star,1,32\n", "rows"),
        ("text,seed,width\n" + "a star,1,32\n" * 10, "prompt"),
        ("prompt,seed,width\n" + "a star,-1,32\n" * 10, "seed"),
        ('prompt,seed,width\n"a star,1,32\n', "ten.csv"),
    ],
)
def test_a_bad_prompt_file_is_one_line_and_writes_nothing(desk: Desk, content: str, message: str) -> None:
    (desk.cards / "datasets/ten.csv").write_text(content)
    done = desk.run(*EVAL)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not desk.store.exists()


def test_a_malformed_card_names_file_line_and_key(desk: Desk) -> None:
    card = desk.cards / "datasets/ten.yaml"
    card.write_text(card.read_text().replace("licence:", "license:"))
    done = desk.run(*EVAL)
    assert done.code == 2
    assert "ten.yaml:" in done.err
    assert "licence" in done.err


def test_a_store_that_cannot_be_written_is_named(desk: Desk) -> None:
    (desk.root / "store").write_text("a file")
    done = desk.run(*EVAL, "--executor", "inline")
    assert done.code == 2
    assert str(desk.root / "store") in done.err


def test_the_paper_profile_says_everything_that_is_missing(desk: Desk) -> None:
    done = desk.run("eval", "--defense", "rece", "--bench", "ring-a-bell-k77")
    assert done.code == 2
    for part in (
        "harness fetch weights sd-1-4",
        "harness fetch bench ring-a-bell-k77",
        "HF_TOKEN",
        "--from",
        "--profile shapes",
    ):
        assert part in done.err
    assert not desk.store.exists()


def test_discarding_images_keeps_the_numbers_and_says_what_a_new_scorer_needs(reference: Reference, desk: Desk) -> None:
    done = desk.run(*EVAL, "--limit", "2", "--executor", "inline", "--discard-images")
    assert done.code == 0, done.err
    images = [p for p in desk.shards() if p.startswith("generate/")]
    assert images
    assert all(pq.read_table(desk.store / p)["image"].null_count == 2 for p in images)
    again = desk.run(*EVAL, "--limit", "2", "--executor", "inline")
    assert again.json["cells"] == done.json["cells"]
    more = desk.run("score", str(desk.out / done.json["run"]), "--scorer", "nudenet", "--executor", "inline")
    assert more.code == 2
    assert more.err.count("\n") == 1
    assert "were discarded" in more.err
    assert "store prune --stage generate" in more.err


@pytest.mark.slow
def test_images_are_discarded_though_too_many_rows_failed(desk: Desk) -> None:
    desk.bench("ten", widths={1: 33})
    words = ("--limit", "2", "--executor", "inline", "--max-errors", "0", "--discard-images")
    done = desk.run("eval", "--defense", "none", "--bench", "ten", "--profile", "small", *words)
    assert done.code == 3, done.err
    assert "1 of 2 rows failed" in done.err
    (images,) = [desk.store / p for p in desk.shards() if p.startswith("generate/")]
    assert pq.read_table(images)["image"].null_count == 2
    assert pq.read_table(images)["image_sha256"].null_count == 1
