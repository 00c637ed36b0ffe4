"""The build stage on the shapes backbone: one builder, a patience of its own, equal bytes after any kill."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from desk import Desk

from harness.cards.backbone import BackboneCard
from harness.defenses.base import BuildStep
from harness.errors import UserError
from harness.models import text_to_image
from harness.pipeline import builds
from harness.pipeline.executor import build_ticket
from harness.pipeline.request import Places, Request
from harness.pipeline.spec import StageSpec
from harness.pipeline.stages import build
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.training_images import drawer
from harness.store.artefacts import ArtefactFolder
from harness.store.shards import Store

# ESD in little: what a step does is the method's own, only less of it.
CARD = """summary: ESD of a test
paper: none
mechanism: esd
artefact: true
params: {{train: esd-x-strict, steps: {steps}, sampler_steps: 2, guidance: 1.0, lr: 0.001}}
concepts:
  nudity: {{erase: [star]}}
"""


def card(desk: Desk, name: str, steps: int) -> None:
    folder = desk.cards / "pipelines/defenses"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(CARD.format(steps=steps))


def places(desk: Desk, store: str = "store") -> Places:
    return Places(store=desk.root / store, out=desk.out, data=desk.root / "data", cards=desk.cards)


def spec(desk: Desk, name: str, store: str = "store") -> StageSpec:
    request = Request(defenses=(name,), benches=(), profile="small", concept="nudity", baseline=False)
    (found,) = builds.prepare(request, places(desk, store)).builds
    return found


def context(desk: Desk, **more: Any) -> WorkerContext:
    desk.out.mkdir(exist_ok=True)
    return WorkerContext(store=Store.open(desk.store), run=desk.out / "run", **more)


def folder(desk: Desk, one: StageSpec, store: str = "store") -> ArtefactFolder:
    return ArtefactFolder.of(Store(desk.root / store), one.fingerprint)


def run(one: StageSpec, where: WorkerContext) -> dict[str, Any]:
    """The ticket that comes back."""
    (row,) = build.BuildStage({0: (one,)}, where)(build_ticket(one, 0)).to_pylist()
    return dict(row)


def test_what_a_build_costs_is_known_before_it_runs(desk: Desk) -> None:
    card(desk, "little", 40)
    cost = spec(desk, "little").build
    assert cost is not None
    assert (cost.defense, cost.concept, cost.kind, cost.steps, cost.images) == ("little", "nudity", "unet-delta", 40, 0)
    assert cost.is_long
    backbone = BackboneCard.model_validate(spec(desk, "little").worker["backbone"])
    per_call = backbone.seconds_per_image / (2 * backbone.steps)
    # One guided step of two on average, three predictions and a backward pass, by the mechanism's own estimate.
    assert cost.seconds == pytest.approx(40 * (2 + 3 + 2) * per_call)
    assert not (desk.root / "store").exists()


def test_an_artefact_is_written_with_its_provenance_and_nothing_else_stays(desk: Desk) -> None:
    card(desk, "little", 3)
    one, where = spec(desk, "little"), context(desk)
    assert run(one, where)["status"] == "ok"
    there = folder(desk, one)
    names = {p.name for p in there.folder.iterdir()}
    assert names - {".lock"} == {"artefact.safetensors", "artefact.json", "artefact.cost.json"}
    record = json.loads((there.folder / "artefact.json").read_text())
    assert record["kind"] == "unet-delta"
    assert record["method"]["params"]["steps"] == 3
    stamp = there.tensors.stat().st_mtime_ns
    assert run(one, where)["status"] == "ok"
    assert there.tensors.stat().st_mtime_ns == stamp


def test_a_stopped_run_stops_its_build_at_a_step_and_says_so(desk: Desk) -> None:
    card(desk, "little", 3)
    one, where = spec(desk, "little"), context(desk)
    where.run.mkdir(parents=True)
    where.stop.touch()
    assert run(one, where)["status"] == "stopped"
    assert not folder(desk, one).is_built
    where.stop.unlink()
    assert run(one, where)["status"] == "ok"


def test_a_build_that_kills_its_worker_again_and_again_is_given_up(desk: Desk) -> None:
    card(desk, "little", 3)
    one, where = spec(desk, "little"), context(desk, tries=2)
    marks = where.run / "attempts" / f"build-{one.fingerprint}.jsonl"
    marks.parent.mkdir(parents=True)
    line = json.dumps({"row": None, "event": "begin", "pid": 1, "time": 0.0}) + "\n"
    marks.write_text(2 * line)
    row = run(one, where)
    assert row["status"] == "failed"
    assert "kills the worker" in row["detail"]
    marks.write_text(line)
    assert run(one, where)["status"] == "ok"


def test_waiting_for_another_builder_outlasts_the_watchdog(desk: Desk) -> None:
    """In a process of its own, which the watchdog would end; the lock is held by this one."""
    card(desk, "little", 3)
    one = spec(desk, "little")
    Store.open(desk.store)
    code = (
        "import sys, pickle\nfrom pathlib import Path\n"
        "from harness.pipeline.stages import build, watchdog\n"
        "one, where = pickle.load(open(sys.argv[1], 'rb'))\n"
        "def backbone():\n    raise SystemExit('built twice')\n"
        "with watchdog.watched(0.5, where.run / 'hangs/outer.txt'):\n"
        "    print(build.ensure(one.worker['layer'], where, backbone))\n"
    )
    (desk.root / "work").write_bytes(pickle.dumps((one, context(desk))))
    there = folder(desk, one)
    with there.lock():
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, str(desk.root / "work")], stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.1)
        deadline = time.monotonic() + 120
        while not (desk.out / "run/hangs/outer.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(3)  # six times what the watchdog would bear
        assert waiting.poll() is None
        there.tensors.write_bytes(b"")  # the other builder is done
    out, _ = waiting.communicate(timeout=120)
    assert (waiting.returncode, out.strip()) == (0, str(there.tensors))


@pytest.mark.slow
def test_a_build_longer_than_the_watchdog_of_shards_is_not_killed(desk: Desk) -> None:
    """Its steps take several times the limit of a shard; the worker that loads it lives, and so does its own clock."""
    card(desk, "long", 60)
    one = spec(desk, "long")
    Store.open(desk.store)
    code = (
        "import sys, pickle, time\nfrom harness.cards.backbone import BackboneCard\n"
        "from harness.models import text_to_image\nfrom harness.pipeline.stages import build, watchdog\n"
        "one, where = pickle.load(open(sys.argv[1], 'rb'))\n"
        "card = BackboneCard.model_validate(one.worker['backbone'])\npipe = text_to_image.load(card)\n"
        "began = time.monotonic()\n"
        "with watchdog.watched(where.limit_s, where.run / 'hangs/outer.txt'):\n"
        "    build.ensure(one.worker['layer'], where, lambda: (card, pipe))\n"
        "print(time.monotonic() - began)\n"
    )
    where = context(desk, limit_s=0.4, silence_s=300.0)
    (desk.root / "work").write_bytes(pickle.dumps((one, where)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(desk.root / "work")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 2 * where.limit_s
    assert folder(desk, one).is_built


def test_a_build_in_which_nothing_moves_ends_its_process(desk: Desk) -> None:
    card(desk, "little", 3)
    one = spec(desk, "little")
    code = (
        "import sys, pickle, time\nfrom harness.pipeline.stages import build\n"
        "one, where = pickle.load(open(sys.argv[1], 'rb'))\n"
        "build.ensure(one.worker['layer'], where, lambda: time.sleep(120))\n"
    )
    where = context(desk, silence_s=0.5)
    (desk.root / "work").write_bytes(pickle.dumps((one, where)))
    done = subprocess.run([sys.executable, "-c", code, str(desk.root / "work")], check=False, timeout=100)
    assert done.returncode not in (0, None)
    (trace,) = (where.run / "hangs").glob("build-*.txt")
    assert "_build" in trace.read_text()


def test_a_second_thread_of_builders_finds_the_first_s_artefact(desk: Desk) -> None:
    """Two at once over one store: both end well, and what lies there was written once."""
    card(desk, "little", 6)
    one, where = spec(desk, "little"), context(desk)
    outcomes: list[str] = []
    builders: list[int] = []

    def backbone(stage: build.BuildStage) -> None:
        original = stage._backbone

        def noted(spec: StageSpec) -> tuple[BackboneCard, Any]:
            builders.append(threading.get_ident())
            return original(spec)

        stage._backbone = noted  # type: ignore[method-assign]

    def work() -> None:
        stage = build.BuildStage({0: (one,)}, dataclasses.replace(where, run=where.run / str(threading.get_ident())))
        backbone(stage)
        outcomes.extend(stage(build_ticket(one, 0))["status"].to_pylist())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["ok", "ok"]
    assert len(builders) == 1


@pytest.mark.slow  # four commands, each of which loads torch and the world
def test_killed_in_the_middle_the_repeated_command_goes_on_and_ends_in_equal_bytes(desk: Desk) -> None:
    """By the command line, twice at once after the kill: one builds on from the checkpoint, the other waits for it."""
    card(desk, "long", 130)
    words = ("build", "long", "--concept", "nudity", "--profile", "small", "--executor", "inline", "--json")
    reference = desk.run(*words, store="reference")
    assert reference.code == 0, reference.err
    one = spec(desk, "long")
    there = folder(desk, one)
    process = desk.start(*words)
    _until(lambda: (progress := there.progress()) is not None and progress.step >= 100, process)
    assert (there.checkpoints / "train.safetensors").exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not there.is_built
    two = [desk.start(*words), desk.start(*words)]
    steps, pids = [], set()
    while not there.is_built and any(p.poll() is None for p in two):
        progress = there.progress()
        if progress is not None and progress.pid in [p.pid for p in two]:
            pids.add(progress.pid)
            steps += [progress.step] if progress.phase == "train" else []
        time.sleep(0.05)
    ends = [p.communicate(timeout=300) for p in two]
    assert [p.returncode for p in two] == [0, 0], ends
    assert len(pids) == 1  # of the two, one has built
    assert all(step > 100 for step in steps)  # and not from the beginning
    made = [folder(desk, one, store).tensors.read_bytes() for store in ("store", "reference")]
    assert made[0] == made[1]
    assert [json.loads(out)["built"][0]["fingerprint"] for out, _ in ends] == 2 * [one.fingerprint]


def _until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_training_images_are_drawn_as_a_benchmark_is_and_the_guard_reads_their_texts(desk: Desk) -> None:
    card(desk, "little", 3)
    backbone = BackboneCard.model_validate(spec(desk, "little").worker["backbone"] | {"steps": 2})
    pipe = text_to_image.load(backbone)
    told: list[BuildStep] = []
    draw = drawer(pipe, backbone, "nudity", told.append)
    texts = ["a red circle", "a blue square", "a green ring", "a red cross", "a pink circle"]
    images = draw(texts, range(5))
    assert [image.size for image in images] == 5 * [(backbone.width, backbone.height)]
    assert [(t.phase, t.step, t.steps) for t in told] == [("draw", 4, 5), ("draw", 5, 5)]
    assert draw(texts[4:], [4])[0].tobytes() == images[4].tobytes()
    count = len(told)
    with pytest.raises(UserError, match="may not be built from the text .*age-term"):
        draw(["a circle", "a child playing in a park"], [0, 1])
    assert len(told) == count  # nothing was drawn, not even what the guard passes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sld-max",), "nothing to build"),
        (("lttle",), "did you mean 'little'"),
        (("little:stepz=3",), "--defense 'little:stepz=3'.*unknown parameter 'stepz'; did you mean 'steps'"),
        (("little:steps=-1",), "'steps'"),
        (("little", "--concept", "violence"), "not declared for concept 'violence'"),
        (("little+uce",), "each put weights of their own"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_is_loaded(desk: Desk, words: tuple[str, ...], said: str) -> None:
    card(desk, "little", 3)
    concept = words[2] if len(words) > 1 else None
    request = Request(defenses=words[:1], benches=(), profile="small", concept=concept, baseline=False)
    with pytest.raises(UserError, match=said):
        builds.prepare(request, places(desk))
    assert not desk.store.exists()
