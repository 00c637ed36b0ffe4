"""``harness sweep``, ``status`` and ``stop`` as a person calls them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from desk import Desk, Done

AXES = ("--set", "regen.alpha=0.3,0.7", "--set", "regen.tokens=2,4")
SWEEP = ("sweep", "--defense", "none", "--bench", "ten", "--profile", "small", "--regen", "resafe:iterations=3")
HERE = ("--limit", "4", "--executor", "inline")


class Finished:
    """A sweep of four cells that has been carried out."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.done = desk.run(*SWEEP, *AXES, *HERE, "--json")
        assert self.done.code == 0, self.done.err
        self.events = _events(self.done)
        self.run = Path(self.events[-1]["paths"]["table"]).parent


def _events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture(scope="module")
def finished(desks: Callable[[str], Desk]) -> Finished:
    return Finished(desks("sweep"))


def test_four_cells_share_one_generation_one_captioning_and_one_embedding(finished: Finished) -> None:
    computed = Counter(path.split("/")[0] for path in finished.desk.shards())
    assert computed == {
        "generate": 1, "caption": 1, "embed": 1, "optimise": 4, "draw": 4, "score-shapes_oracle": 5,
    }  # fmt: skip


def test_events_are_one_object_a_line(finished: Finished) -> None:
    kinds = Counter(event["event"] for event in finished.events)
    assert finished.events[0]["event"] == "started"
    assert finished.events[-1]["event"] == "done"
    assert kinds["cell"] == 4
    assert kinds["best"] == 1
    assert kinds["progress"] >= 1
    assert all(event["run"] == finished.run.name for event in finished.events)
    last = [e for e in finished.events if e["event"] == "progress" and e["cells"]][-1]
    assert last["cells"][1] == 4


def test_the_table_is_tidy(finished: Finished) -> None:
    rows = pq.read_table(finished.run / "table.parquet").to_pylist()
    main = [row for row in rows if row["metric"] == "asr" and row["main"]]
    assert [(r["cell"], r["regen.alpha"], r["regen.tokens"]) for r in main if r["cell"] is not None] == [
        (0, 0.3, 2), (1, 0.3, 4), (2, 0.7, 2), (3, 0.7, 4),
    ]  # fmt: skip
    assert [(r["cell"], r["variant"], r["regen.alpha"]) for r in main if r["cell"] is None] == [(None, "base", None)]
    assert {(r["n"], r["errors"], r["excluded"], r["subset"]) for r in main} == {(4, 0, 0, "4/10")}
    assert all(r["low"] <= r["value"] == r["k"] / r["n"] <= r["high"] for r in main)
    assert all("optimise:" in r["fingerprints"] for r in main if r["cell"] is not None)
    told = list(csv.DictReader(io.StringIO((finished.run / "table.csv").read_text())))
    assert [row["variant"] for row in told] == [row["variant"] for row in rows]


def test_a_cell_is_what_an_eval_gives_from_the_same_shards(finished: Finished) -> None:
    before = finished.desk.shards()
    regen = "resafe:alpha=0.3:tokens=2:iterations=3"
    done = finished.desk.run(
        "eval",
        "--defense",
        "none",
        "--bench",
        "ten",
        "--profile",
        "small",
        "--no-baseline",
        "--regen",
        regen,
        "--json",
        *HERE,
    )
    assert done.code == 0, done.err
    assert finished.desk.shards() == before
    asr = {c["variant"]: (c["k"], c["n"], c["low"], c["high"]) for c in done.json["cells"] if c["metric"] == "asr"}
    own = next(e for e in finished.events if e["event"] == "cell" and e["cell"] == 0)
    assert asr[own["variant"]] == (own["k"], own["n"], own["low"], own["high"])


def test_a_finished_sweep_answers_at_once_and_says_that_the_best_was_selected(finished: Finished) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in finished.run.iterdir() if p.is_file()}
    done = finished.desk.run(*SWEEP, *AXES, *HERE)
    assert done.code == 0, done.err
    assert {p.name: p.stat().st_mtime_ns for p in finished.run.iterdir() if p.is_file()} == before
    assert "lowest of 4 cells by shapes-star-oracle" in done.out
    assert "selected: chosen by the rows that it is counted on" in done.out
    assert "holds for all cells at once" in done.out
    for name in ("regen.alpha.svg", "regen.tokens.svg", "report.md", "sweep.json"):
        assert (finished.run / name).is_file()


@pytest.mark.slow
def test_one_more_value_computes_only_what_it_adds(finished: Finished) -> None:
    before = finished.desk.shards()
    words = ("--set", "regen.alpha=0.3,0.5,0.7", "--set", "regen.tokens=2")
    done = finished.desk.run(*SWEEP, *words, *HERE)
    assert done.code == 0, done.err
    added = Counter(path.split("/")[0] for path in finished.desk.shards().keys() - before.keys())
    assert added == {"optimise": 1, "draw": 1, "score-shapes_oracle": 1}


def test_status_reads_a_finished_run_from_its_files(finished: Finished) -> None:
    told = finished.desk.run("status", finished.run.name, "--json").json
    assert (told["state"], told["errors"], told["run"]) == ("done", 0, finished.run.name)
    assert finished.run.name in finished.desk.run("status").out
    assert "is not at work: done" in finished.desk.run("stop", finished.run.name).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "regen.alpha=1", "--set", "regen.alpha=0"), "regen.alpha is given twice (1, then 0)"),
        (("--zip", "--one-at-a-time", "--set", "regen.alpha=1"), "choose one"),
        (("--bench", ""), "--bench '' names nothing"),
        (("--card", "figure13"), "did you mean 'figure12'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(desk: Desk, words: tuple[str, ...], message: str) -> None:
    sweep = SWEEP if "--bench" not in words else (*SWEEP[:3], *SWEEP[5:])
    done = desk.run(*sweep, *words, "--executor", "inline")
    assert done.code == 2, done.err
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not desk.store.exists()


def test_a_dry_run_names_the_cells_and_writes_nothing(desk: Desk) -> None:
    done = desk.run(*SWEEP, *AXES, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert [c["regen.alpha"] for c in done.json["cells"]] == [0.3, 0.3, 0.7, 0.7]
    assert done.json["stages"]["caption"]["fingerprints"] == 1
    assert not desk.store.exists()


LONG = ("sweep", "submit", "--defense", "uce", "--bench", "ten", "--profile", "small", "--executor", "inline")


def _wait(desk: Desk, run: str, reached: Callable[[dict[str, Any]], bool], seconds: float = 240) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not reached(told := desk.run("status", run, "--json").json):
        assert time.monotonic() < deadline, told
        time.sleep(0.3)
    return told


@pytest.mark.slow
def test_a_submitted_sweep_is_watched_stopped_and_gone_on_with(desk: Desk) -> None:
    words = (*LONG, "--regen", "resafe:iterations=400", "--set", "regen.alpha=0.2,0.3,0.4,0.5")
    done = desk.run(*words, "--json")
    assert done.code == 0, done.err
    run = done.json["run"]
    log = Path(done.json["log"])
    assert log.stat().st_mode & 0o077 == 0
    working = _wait(desk, run, lambda told: told["state"] == "working" and told["stages"])
    assert working["holder"]["pid"] == done.json["holder"]["pid"]
    again = desk.run(*words)
    assert again.code == 2
    assert f"is at work already, by process {working['holder']['pid']}" in again.err
    same_here = desk.run(*[word for word in words if word != "submit"])
    assert same_here.code == 2
    assert f"process {working['holder']['pid']}" in same_here.err
    stopped = desk.run("stop", run, "--wait", "200")
    assert stopped.code == 0, stopped.err
    assert "stopped" in stopped.out
    told = _wait(desk, run, lambda told: told["state"] == "stopped")
    assert told["cells"][0] < 4
    before = desk.shards()
    assert desk.run(*words).code == 0
    _wait(desk, run, lambda told: told["state"] == "done")
    assert before.items() <= desk.shards().items()
    cells = pq.read_table(desk.out / run / "table.parquet").to_pylist()
    assert sum(r["metric"] == "asr" and r["cell"] is not None for r in cells) == 4


def test_a_submitted_sweep_outlives_its_command_and_says_what_ended_it(desk: Desk) -> None:
    """Here a scorer is lacking, which planning finds: the submitter has gone by then, and the log says it."""
    desk.profile(scorers="saferedir_head")
    done = desk.run(*LONG, "--json", "--regen", "none")
    assert done.code == 0, done.err
    told = _wait(desk, done.json["run"], lambda told: told["state"] == "dead")
    assert told["cells"] is None
    assert "saferedir_head" in Path(done.json["log"]).read_text()
    assert "saferedir_head" in desk.run("status", done.json["run"]).out
