"""The stage under every kind of row: good, raising, transient, killing, hanging. Real processes die here."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness.errors import RowError, TransientError, UserError
from harness.pipeline.spec import Source, StageSpec
from harness.pipeline.stages.attempts import Marks
from harness.pipeline.stages.base import TICKET, Stage, StageActor, WorkerContext, failed, join_columns
from harness.store.shards import Store, publish, read

SCHEMA = pa.schema([("row_id", pa.string()), ("sample", pa.int32()), ("value", pa.int64()), ("error", pa.string())])


class Doubling:
    """A small real worker: doubles ``value``; some values misbehave."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            if row["value"] == -1:
                raise ValueError("minus one")
            if row["value"] == -2:
                os.kill(os.getpid(), signal.SIGKILL)
            if row["value"] == -3:
                time.sleep(60)
            if row["value"] == -5:
                raise RowError("refused")
            if row["value"] == -4:
                raise TransientError("come back later")
            if row["value"] == -6:
                raise OSError(errno.ENOSPC, "No space left on device")
            if row["value"] == -7:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            if row["value"] == -8:
                raise OSError("image file is truncated")
            out.append(row | {"value": 2 * row["value"], "error": None})
        return pa.Table.from_pylist(out, schema=SCHEMA)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        return pa.Table.from_pylist([r | {"value": None, "error": code} for r in rows.to_pylist()], schema=SCHEMA)


def _install() -> None:
    module = types.ModuleType("harness.pipeline.stages.doubling")
    module.load = lambda worker, context, previous: Doubling()  # type: ignore[attr-defined]
    sys.modules["harness.pipeline.stages.doubling"] = module
    deadly = types.ModuleType("harness.pipeline.stages.deadly")
    deadly.load = lambda worker, context, previous: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]
    sys.modules["harness.pipeline.stages.deadly"] = deadly


_install()
SPEC = StageSpec(stage="double", kind="doubling", worker={}, key={"a": 1}, fingerprint="f" * 16)


def _ticket(values: list[int]) -> pa.Table:
    rows = pa.Table.from_pylist(
        [{"row_id": f"r{i}", "sample": 0, "value": v, "error": None} for i, v in enumerate(values)], SCHEMA
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    ticket = {
        "condition": 0,
        "shard": 0,
        "key": "k",
        "rows": sink.getvalue().to_pybytes(),
        "status": "ok",
        "detail": "",
        "failed": [],
    }
    return pa.Table.from_pylist([ticket], schema=TICKET)


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    run = tmp_path / "run"
    run.mkdir()
    return WorkerContext(store=Store.open(tmp_path / "store"), run=run, tries=2, limit_s=60.0)


def _once(context: WorkerContext, values: list[int], spec: StageSpec = SPEC) -> dict[str, Any]:
    found: dict[str, Any] = Stage({0: (spec,)}, context)(_ticket(values)).to_pylist()[0]
    return found


def _in_process(context: WorkerContext, values: list[int], spec: StageSpec) -> None:
    _install()
    found = _once(context, values, spec)
    (context.run / "ticket.json").write_text(json.dumps({k: found[k] for k in ("status", "detail")}))


def _until_done(context: WorkerContext, values: list[int], attempts: int, spec: StageSpec = SPEC) -> list[int]:
    """What Ray does: start the actor again until the ticket comes back; exit codes of the tries."""
    codes = []
    for _ in range(attempts):
        process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(context, values, spec))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    return codes


def _output(context: WorkerContext) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(context.store.path(SPEC.stage, SPEC.fingerprint, "k")).to_pylist()
    return found


def test_good_rows_are_published_once_and_passed_on(context: WorkerContext) -> None:
    assert _once(context, [1, 2, 3])["status"] == "ok"
    assert [r["value"] for r in _output(context)] == [2, 4, 6]
    assert _once(context, [7, 7, 7])["status"] == "ok"  # published: not computed again
    assert [r["value"] for r in _output(context)] == [2, 4, 6]


def test_a_raising_row_is_final_and_costs_no_other_row(context: WorkerContext) -> None:
    ticket = _once(context, [1, 2, -1, 4, 5])
    assert (ticket["status"], ticket["failed"]) == ("ok", ["r2 0"])
    assert [r["error"] for r in _output(context)] == [None, None, "double:ValueError", None, None]
    assert [r["value"] for r in _output(context)] == [2, 4, None, 8, 10]


def test_when_every_row_raises_nothing_is_published(context: WorkerContext) -> None:
    ticket = _once(context, [-1] * 8)
    assert ticket["status"] == "failed"
    assert "minus one" in ticket["detail"]
    assert not context.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


@pytest.mark.parametrize("place", ["first", "last"])
def test_bad_rows_side_by_side_are_the_rows_as_long_as_any_other_succeeds(context: WorkerContext, place: str) -> None:
    good, bad = list(range(1, 20)), [-1] * 12
    ticket = _once(context, [*bad, *good] if place == "first" else [*good, *bad])
    assert (ticket["status"], len(ticket["failed"])) == ("ok", 12)
    assert {r["error"]: r["value"] for r in _output(context)} == {"double:ValueError": None, None: 38}


def test_a_known_row_error_keeps_its_code_even_if_every_row_has_it(context: WorkerContext) -> None:
    assert _once(context, [-5] * 4)["status"] == "ok"
    assert {r["error"] for r in _output(context)} == {"refused"}


def test_one_row_that_raises_alone_is_final(context: WorkerContext) -> None:
    assert _once(context, [-1])["status"] == "ok"
    assert [r["error"] for r in _output(context)] == ["double:ValueError"]


def test_a_transient_failure_leaves_the_shard_incomplete(context: WorkerContext) -> None:
    ticket = _once(context, [1, -4])
    assert (ticket["status"], ticket["detail"]) == ("incomplete", "double: come back later")
    assert not context.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()
    assert Marks(context.run / "attempts" / f"double-{SPEC.fingerprint}-k.jsonl").count(None) == 0


@pytest.mark.parametrize(("value", "said"), [(-6, "No space left"), (-7, "can't allocate memory")])
def test_what_the_machine_lacks_is_no_row_s_error(context: WorkerContext, value: int, said: str) -> None:
    for values in ([value], [1, value, 3]):
        ticket = _once(context, values)
        assert ticket["status"] == "incomplete"
        assert said in ticket["detail"]
        assert not context.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


def test_a_file_that_cannot_be_understood_is_a_row_s_error(context: WorkerContext) -> None:
    assert _once(context, [1, -8])["status"] == "ok"
    assert [r["error"] for r in _output(context)] == [None, "double:OSError"]


def test_a_shard_that_was_cut_short_is_computed_anew(context: WorkerContext) -> None:
    _once(context, [1, 2])
    path = context.store.path(SPEC.stage, SPEC.fingerprint, "k")
    before = path.read_bytes()
    for torn in (before[:-1], before[: len(before) // 2], b""):
        path.write_bytes(torn)
        assert _once(context, [1, 2])["status"] == "ok"
        assert path.read_bytes() == before


def test_a_sidecar_that_cannot_be_written_loses_nothing(context: WorkerContext) -> None:
    (context.run / "log").write_text("a file where the folder should be")
    assert _once(context, [1, -1])["status"] == "ok"
    assert [r["error"] for r in _output(context)] == [None, "double:ValueError"]


def test_a_torn_mark_is_passed_over(context: WorkerContext) -> None:
    path = context.run / "attempts" / f"double-{SPEC.fingerprint}-k.jsonl"
    path.parent.mkdir()
    path.write_text('{"row": null, "event": "begin"}\n{"row": null, "ev')
    assert Marks(path).count(None) == 1
    assert _once(context, [1])["status"] == "ok"


def test_a_worker_that_was_given_up_for_one_that_fails_to_load_is_not_used_again(context: WorkerContext) -> None:
    given: list[object] = []

    def load(worker: dict[str, bool], context: WorkerContext, previous: object) -> Doubling:
        given.append(previous)
        if worker["fails"]:
            previous.failed = None  # type: ignore[attr-defined]  # half changed
            raise UserError("does not fit")
        return Doubling()

    module = types.ModuleType("harness.pipeline.stages.changing")
    module.load = load  # type: ignore[attr-defined]
    sys.modules["harness.pipeline.stages.changing"] = module
    good, bad = (
        StageSpec(stage=name, kind="changing", worker={"fails": fails}, key={}, fingerprint=name)
        for name, fails in (("good", False), ("bad", True))
    )
    stage = Stage({}, context)
    first = stage._load(good)
    with pytest.raises(UserError):
        stage._load(bad)
    again = stage._load(good)
    assert again is not first
    assert stage._load(good) is again
    assert given == [None, first, None]


def test_a_model_that_kills_whoever_loads_it_ends_and_publishes_nothing(context: WorkerContext) -> None:
    spec = StageSpec(stage="double", kind="deadly", worker={}, key={}, fingerprint="d" * 16)
    codes = _until_done(context, [1, 2], attempts=8, spec=spec)
    assert codes == [-signal.SIGKILL] * 2 * context.tries + [0]
    ticket = json.loads((context.run / "ticket.json").read_text())
    assert ticket["status"] == "failed"
    assert "loading its model kills the worker" in ticket["detail"]
    assert not context.store.path(SPEC.stage, spec.fingerprint, "k").exists()


def test_when_every_row_kills_it_is_not_the_rows(context: WorkerContext) -> None:
    """A machine without memory must not have its rows given up for good."""
    impatient = WorkerContext(store=context.store, run=context.run, tries=1)
    codes = _until_done(impatient, [-2] * 5, attempts=8)
    assert codes == [-signal.SIGKILL] * 4 + [0]
    ticket = json.loads((context.run / "ticket.json").read_text())
    assert ticket["status"] == "failed"
    assert "every row kills the worker, first r0#0" in ticket["detail"]
    assert not context.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


def test_a_row_that_kills_its_process_is_quarantined_by_name(context: WorkerContext) -> None:
    codes = _until_done(context, [1, -2, 3], attempts=8)
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) == 2 * context.tries + 1  # two whole shards, the row twice on its own, and the rest
    assert [(r["value"], r["error"]) for r in _output(context)] == [(2, None), (None, "double:crash"), (6, None)]
    logged = [json.loads(line) for p in (context.run / "log").iterdir() for line in p.read_text().splitlines()]
    assert [e["quarantined"] for e in logged if "quarantined" in e] == ["r1#0"]


def test_a_row_that_hangs_is_quarantined_with_a_trace(context: WorkerContext) -> None:
    impatient = WorkerContext(store=context.store, run=context.run, tries=1, limit_s=1.5)
    codes = _until_done(impatient, [1, -3], attempts=6)
    assert codes[-1] == 0
    assert [r["error"] for r in _output(context)] == [None, "double:crash"]
    assert any("__call__" in p.read_text() for p in (context.run / "hangs").iterdir())


def test_a_stopped_run_begins_nothing(context: WorkerContext) -> None:
    context.stop.touch()
    assert _once(context, [1])["status"] == "stopped"
    assert not context.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


def test_a_ticket_of_another_chain_or_a_broken_one_passes_through(context: WorkerContext) -> None:
    ticket = _ticket([1])
    assert Stage({1: (SPEC,)}, context)(ticket).equals(ticket)
    broken = pa.Table.from_pylist([ticket.to_pylist()[0] | {"status": "failed"}], schema=TICKET)
    assert Stage({0: (SPEC,)}, context)(broken).equals(broken)


def test_what_the_fingerprint_was_made_of_lies_beside_the_shards(context: WorkerContext) -> None:
    _once(context, [1])
    assert json.loads((context.store.folder(SPEC.stage, SPEC.fingerprint) / "stage.json").read_text()) == {"a": 1}


# What a stage reads: the ticket's rows, or other stages' outputs side by side, or a reference image.

IDENTITY = pa.schema(
    [("row_id", pa.string()), ("sample", pa.int32()), ("defense", pa.string()), ("variant", pa.string())]
)


def _part(ids: str, variant: str = "base", **columns: list[Any]) -> pa.Table:
    """Rows named by one letter each, with more columns."""
    found = pa.Table.from_pylist(
        [{"row_id": c, "sample": 0, "defense": "none", "variant": variant} for c in ids], IDENTITY
    )
    for name, values in columns.items():
        found = found.append_column(name, pa.array(values))
    return found


class Seeing:
    """A small real worker: publishes what it is given."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        return rows.append_column("error", pa.array([code] * rows.num_rows))


def _seeing() -> None:
    module = types.ModuleType("harness.pipeline.stages.seeing")
    module.load = lambda worker, context, previous: Seeing()  # type: ignore[attr-defined]
    sys.modules["harness.pipeline.stages.seeing"] = module


_seeing()


def _see(
    context: WorkerContext, upstream: tuple[Source, ...], reference: Source | None = None
) -> tuple[str, pa.Table | None]:
    """The ticket's status and detail, and what the stage read."""
    spec = StageSpec(
        stage="see", kind="seeing", worker={}, key={}, upstream=upstream, reference=reference, fingerprint="s"
    )
    ticket = Stage({0: (spec,)}, context)(_ticket([])).to_pylist()[0]
    path = context.store.path("see", "s", "k")
    return f"{ticket['status']}: {ticket['detail']}", read(path) if path.exists() else None


def test_a_stage_reads_the_columns_of_all_it_depends_on_side_by_side(context: WorkerContext) -> None:
    publish(context.store.path("a", "1", "k"), _part("xy", x=[1, 2], both=[3, 4]))
    publish(context.store.path("b", "2", "k"), _part("xy", y=[5, 6], both=[7, 8]))
    _, found = _see(context, (Source("a", "1"), Source("b", "2")))
    assert found is not None
    assert found.column_names == ["row_id", "sample", "defense", "variant", "x", "both", "y"]
    assert found.select(["x", "both", "y"]).to_pydict() == {"x": [1, 2], "both": [3, 4], "y": [5, 6]}  # the first wins


@pytest.mark.parametrize("other", ["yx", "x", "xz", "xyz"])
def test_other_rows_never_stand_side_by_side(context: WorkerContext, other: str) -> None:
    publish(context.store.path("a", "1", "k"), _part("xy"))
    publish(context.store.path("b", "2", "k"), _part(other))
    status, found = _see(context, (Source("a", "1"), Source("b", "2")))
    assert status.startswith("failed: see: ValueError: tables of other rows")
    assert found is None


def test_another_variant_of_the_same_rows_may_stand_beside_and_another_defense_may_not() -> None:
    one = _part("xy", x=[1, 2])
    assert join_columns(one, _part("xy", "resafe", y=[3, 4]))["variant"].to_pylist() == ["base", "base"]
    other = _part("xy").set_column(2, "defense", pa.array(["rece", "rece"]))
    with pytest.raises(ValueError, match="other rows"):
        join_columns(one, other)


def test_a_reference_is_looked_up_under_its_own_shard(context: WorkerContext) -> None:
    publish(context.store.path("a", "1", "k"), _part("xy", "resafe", image=[b"1", b"2"], image_sha256=["i", "j"]))
    publish(context.store.path("plain", "2", "other"), _part("xy", image=[b"3", None], image_sha256=["m", None]))
    _, found = _see(context, (Source("a", "1"),), Source("plain", "2", {"k": "other"}))
    assert found is not None
    assert found["reference"].to_pylist() == [b"3", None]
    assert found["reference_sha256"].to_pylist() == ["m", None]
    assert found["image"].to_pylist() == [b"1", b"2"]


def test_a_reference_of_other_prompts_is_refused(context: WorkerContext) -> None:
    publish(context.store.path("a", "1", "k"), _part("xy", image=[b"1", b"2"], image_sha256=["i", "j"]))
    publish(context.store.path("plain", "2", "k"), _part("yx", image=[b"3", b"4"], image_sha256=["m", "n"]))
    status, found = _see(context, (Source("a", "1"),), Source("plain", "2"))
    assert "plain k holds other prompts than its images" in status
    assert found is None


def test_what_a_regeneration_inherits_is_not_counted_again(context: WorkerContext) -> None:
    codes: list[tuple[dict[str, list[str | None]], set[str]]] = [
        ({"error": [None, "crash", None]}, {"y"}),
        ({"error": [None, "base:crash", "caption:refusal"]}, {"z"}),
        ({"a_error@same/base": ["size", None, None], "a_value": ["1", "2", "3"]}, {"x"}),
        ({"b_error": [None, None, None]}, set()),
        ({"caption_failure": ["caption:refusal", None, None]}, set()),  # counted where it is drawn
        ({"error": ["base:crash", "crash", None], "b_error": ["size", "size", None]}, {"x", "y"}),  # each row once
    ]
    for columns, expected in codes:
        given = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        assert failed(pa.table({"row_id": ["x", "y", "z"], **given})) == expected


def test_a_ticket_tells_of_rows_that_failed_just_now(context: WorkerContext) -> None:
    first = StageSpec(stage="double", kind="doubling", worker={}, key={}, fingerprint="1")
    second = StageSpec(stage="again", kind="doubling", worker={}, key={}, upstream=(first.source,), fingerprint="2")
    actor = StageActor([{0: (first,)}, {0: (second,)}], context)
    assert actor(_ticket([1, -1])).to_pylist()[0]["failed"] == ["r1 0"]
    assert actor(_ticket([1, -1])).to_pylist()[0]["failed"] == []  # published: counted before the run began


def test_a_stage_of_several_variants_publishes_each_and_stops_at_the_first_that_fails(context: WorkerContext) -> None:
    def spec(name: str, source: str) -> StageSpec:
        return StageSpec(
            stage="see", kind="seeing", worker={}, key={}, upstream=(Source(source, "1"),), fingerprint=name
        )

    publish(context.store.path("a", "1", "k"), _part("x"))
    variants = (spec("one", "a"), spec("two", "a"), spec("three", "not-there"), spec("four", "a"))
    ticket = Stage({0: variants}, context)(_ticket([])).to_pylist()[0]
    assert ticket["status"] == "failed"
    there = [context.store.path("see", v.fingerprint, "k").exists() for v in variants]
    assert there == [True, True, False, False]
