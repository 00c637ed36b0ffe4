"""Publishing on W&B with the real client, offline: what it wrote is read back byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from wandb.proto import wandb_internal_pb2 as protocol

from harness.cli.publish import publish_after
from harness.errors import UserError
from harness.metrics import cells as cell_files
from harness.metrics.cells import Cell
from harness.report import wandb as wandb_report

SECRET = "a very secret prompt"  # stands for prompts, captions and paths
_BLOCK = 32 * 1024


def cell(defense: str, k: int, **more: Any) -> Cell:
    return Cell(
        profile="shapes", backbone="shapes", defense=defense, variant="base", bench="direct", concept="nudity",
        metric="asr", scorer="shapes_classifier", policy="shapes-star-0.5", main=True, k=k, n=4, value=k / 4, errors=0,
        excluded=0, low=0.1, high=0.9, interval="wilson", **more,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two conditions with four rows each."""
    folder = tmp_path / "none-uce_direct_shapes_0a1b2c3d"
    folder.mkdir()
    rows = [
        {
            "row_id": f"direct/{i:05}", "sample": 0, "bench": "direct", "concept": "nudity", "profile": "shapes",
            "backbone": "shapes", "defense": defense, "variant": "base", "prompt": SECRET, "unsafe_caption": SECRET,
            "unsafe_components": [SECRET], "optimized_prompt": SECRET, "source": f"/home/{SECRET}", "error": None,
            "shapes_classifier_star": 0.25 * i, "image_sha256": "0" * 64,
        }
        for defense in ("none", "uce") for i in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    cell_files.write(folder / "cells.json", [cell("none", 3), cell("uce", 1)])
    condition = {
        "bench": "direct", "concept": "nudity", "defended": "nudity", "rows": 4, "total_rows": 200, "shards": ["x"],
        "variants": [{"variant": "base", "method": {}, "settings": {"seed": 7}, "stages": []}],
        "stages": [
            {"stage": "generate", "fingerprint": "f" * 16, "key": {"backbone": {"steps": 25}, "place": f"/{SECRET}"}}
        ],
    }  # fmt: skip
    record = {
        "run": folder.name, "harness": "0.1.0", "command": f"harness eval --data /home/{SECRET}", "profile": "shapes",
        "backbone": "shapes", "conditions": [{**condition, "defense": d} for d in ("none", "uce")],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def records(path: Path) -> Iterator[Any]:
    """The records of an offline file: LevelDB's log format behind a header of seven bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # too little left in the block for a record's own header
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_what_is_published_can_be_read_back_and_holds_no_prompt_caption_or_path(run: Path) -> None:
    destination = wandb_report.Destination("offline", group="a sweep")
    ids = wandb_report.publish(run, destination)
    assert len(set(ids)) == 2
    found = [r for path in sorted(run.glob("wandb/offline-run-*/*.wandb")) for r in records(path)]
    runs = {r.run.run_id: r.run for r in found if r.WhichOneof("record_type") == "run"}
    assert set(runs) == set(ids)
    assert {(r.project, r.run_group) for r in runs.values()} == {("harness", "a sweep")}
    config = {u.key: json.loads(u.value_json) for u in runs[ids[1]].config.update}
    assert config["defense"] == "uce"
    assert config["stages"]["generate"]["fingerprint"] == "f" * 16
    assert config["stages"]["generate"]["backbone"] == {"steps": 25}
    summary = {
        u.key or "/".join(u.nested_key): json.loads(u.value_json)
        for r in found if r.WhichOneof("record_type") == "summary" for u in r.summary.update
    }  # fmt: skip
    assert summary["base/asr/shapes-star-0.5/k"] in (1, 3)
    artifacts = [r.request.log_artifact.artifact for r in found if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in found if r.WhichOneof("record_type") == "artifact"]
    assert {a.type for a in artifacts} >= {"scores"}
    for path in run.glob("wandb/**/*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
            assert path.suffix not in (".png", ".jpg", ".jpeg", ".webp")


def test_publishing_again_updates_the_same_runs(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    first, second = (wandb_report.run_id(record["run"], c) for c in record["conditions"])
    assert first != second
    assert first == wandb_report.run_id(record["run"], {**record["conditions"][0], "rows": 9})


def test_scores_keep_numbers_and_codes_and_lose_every_other_text(run: Path) -> None:
    scores = pq.read_table(run / "scores.parquet")
    public = wandb_report.public_scores(scores)
    assert "shapes_classifier_star" in public.column_names
    assert "error" in public.column_names
    assert SECRET not in str(public.to_pylist())
    imported = scores.set_column(scores.column_names.index("defense"), "defense", pa.array(["imported"] * 8))
    assert not any("direct" in row["row_id"] + row["bench"] for row in wandb_report.public_scores(imported).to_pylist())


@pytest.mark.parametrize(
    ("given", "key", "mode"),
    [(None, None, "disabled"), (None, "k", "online"), ("offline", "k", "offline"), ("disabled", "k", "disabled")],
)
def test_unasked_nothing_is_published_unless_a_key_is_there(given: str | None, key: str | None, mode: str) -> None:
    assert wandb_report.mode_of(given, {"WANDB_API_KEY": key} if key else {}) == mode


def test_mistakes_are_one_line_and_a_failure_after_a_run_is_a_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--wandb 'ofline'; did you mean 'offline'\?"):
        wandb_report.mode_of("ofline")
    with pytest.raises(UserError, match="no complete run there"):
        wandb_report.publish(tmp_path / "nowhere", wandb_report.Destination("offline"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no login either
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    publish_after(run, "online", "harness", None)
    assert "harness: warning: not published" in capsys.readouterr().err
