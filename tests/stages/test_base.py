"""The stage under every kind of row: good, raising, transient, killing, hanging. Real processes die here."""

from __future__ import annotations

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

from harness.errors import RowError, TransientError
from harness.plan import StageSpec
from harness.stages.base import TICKET, Marks, Site, Stage
from harness.store import Store, read

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
            out.append(row | {"value": 2 * row["value"], "error": None})
        return pa.Table.from_pylist(out, schema=SCHEMA)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        return pa.Table.from_pylist([r | {"value": None, "error": code} for r in rows.to_pylist()], schema=SCHEMA)


def _install() -> None:
    module = types.ModuleType("harness.stages.doubling")
    module.load = lambda worker, site, previous: Doubling()  # type: ignore[attr-defined]
    sys.modules["harness.stages.doubling"] = module


_install()
SPEC = StageSpec(stage="double", kind="doubling", worker={}, key={"a": 1}, upstream=None, fingerprint="f" * 16)


def _ticket(values: list[int]) -> pa.Table:
    rows = pa.Table.from_pylist(
        [{"row_id": f"r{i}", "sample": 0, "value": v, "error": None} for i, v in enumerate(values)], SCHEMA
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    ticket = {
        "chain": 0,
        "shard": 0,
        "key": "k",
        "rows": sink.getvalue().to_pybytes(),
        "status": "ok",
        "detail": "",
        "errors": 0,
    }
    return pa.Table.from_pylist([ticket], schema=TICKET)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    run = tmp_path / "run"
    run.mkdir()
    return Site(store=Store.open(tmp_path / "store"), run=run, tries=2, limit_s=60.0)


def _once(site: Site, values: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = Stage({0: SPEC}, site)(_ticket(values)).to_pylist()[0]
    return found


def _in_process(site: Site, values: list[int]) -> None:
    _install()
    _once(site, values)


def _until_done(site: Site, values: list[int], attempts: int) -> list[int]:
    """What Ray does: start the actor again until the ticket comes back; exit codes of the tries."""
    codes = []
    for _ in range(attempts):
        process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(site, values))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    return codes


def _output(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(site.store.path(SPEC.stage, SPEC.fingerprint, "k")).to_pylist()
    return found


def test_good_rows_are_published_once_and_passed_on(site: Site) -> None:
    assert _once(site, [1, 2, 3])["status"] == "ok"
    assert [r["value"] for r in _output(site)] == [2, 4, 6]
    assert _once(site, [7, 7, 7])["status"] == "ok"  # published: not computed again
    assert [r["value"] for r in _output(site)] == [2, 4, 6]


def test_a_raising_row_is_final_and_costs_no_other_row(site: Site) -> None:
    ticket = _once(site, [1, 2, -1, 4, 5])
    assert (ticket["status"], ticket["errors"]) == ("ok", 1)
    assert [r["error"] for r in _output(site)] == [None, None, "double:ValueError", None, None]
    assert [r["value"] for r in _output(site)] == [2, 4, None, 8, 10]


def test_when_every_row_raises_nothing_is_published(site: Site) -> None:
    ticket = _once(site, [-1] * 8)
    assert ticket["status"] == "failed"
    assert "minus one" in ticket["detail"]
    assert not site.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


def test_a_known_row_error_keeps_its_code_even_if_every_row_has_it(site: Site) -> None:
    assert _once(site, [-5] * 4)["status"] == "ok"
    assert {r["error"] for r in _output(site)} == {"refused"}


def test_one_row_that_raises_alone_is_final(site: Site) -> None:
    assert _once(site, [-1])["status"] == "ok"
    assert [r["error"] for r in _output(site)] == ["double:ValueError"]


def test_a_transient_failure_leaves_the_shard_incomplete(site: Site) -> None:
    ticket = _once(site, [1, -4])
    assert (ticket["status"], ticket["detail"]) == ("incomplete", "double: come back later")
    assert not site.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()
    assert Marks(site.run / "attempts" / f"double-{SPEC.fingerprint}-k.jsonl").count(None) == 0


def test_a_row_that_kills_its_process_is_quarantined_by_name(site: Site) -> None:
    codes = _until_done(site, [1, -2, 3], attempts=8)
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) == site.tries + 2  # two whole shards, one row on its own, and the rest
    assert [(r["value"], r["error"]) for r in _output(site)] == [(2, None), (None, "double:crash"), (6, None)]
    logged = [json.loads(line) for p in (site.run / "log").iterdir() for line in p.read_text().splitlines()]
    assert [e["quarantined"] for e in logged if "quarantined" in e] == ["r1#0"]


def test_a_row_that_hangs_is_quarantined_with_a_trace(site: Site) -> None:
    impatient = Site(store=site.store, run=site.run, tries=1, limit_s=1.5)
    codes = _until_done(impatient, [1, -3], attempts=6)
    assert codes[-1] == 0
    assert [r["error"] for r in _output(site)] == [None, "double:crash"]
    assert any("__call__" in p.read_text() for p in (site.run / "hangs").iterdir())


def test_a_stopped_run_begins_nothing(site: Site) -> None:
    site.stop.touch()
    assert _once(site, [1])["status"] == "stopped"
    assert not site.store.path(SPEC.stage, SPEC.fingerprint, "k").exists()


def test_a_ticket_of_another_chain_or_a_broken_one_passes_through(site: Site) -> None:
    ticket = _ticket([1])
    assert Stage({1: SPEC}, site)(ticket).equals(ticket)
    broken = pa.Table.from_pylist([ticket.to_pylist()[0] | {"status": "failed"}], schema=TICKET)
    assert Stage({0: SPEC}, site)(broken).equals(broken)


def test_what_the_fingerprint_was_made_of_lies_beside_the_shards(site: Site) -> None:
    _once(site, [1])
    assert json.loads((site.store.folder(SPEC.stage, SPEC.fingerprint) / "stage.json").read_text()) == {"a": 1}
