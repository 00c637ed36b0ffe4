"""A finished run on Weights & Biases: one W&B run per condition, from what the run's folder holds.

What goes there: the cards' resolved values and fingerprints (config), every cell (summary and a table whose rows
compare across runs), a bar chart of ASR, and the raw scores as an artifact, without prompts, captions and paths. An
image never does. Ids are made of the run's name, so that publishing again updates what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.errors import UserError, nearest
from harness.metrics import cells as cell_files
from harness.metrics.cells import ASR, Cell

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = ("online", "offline", "disabled")
PROJECT = "harness"
# Columns of text that may leave this machine: names and codes, no prompts, captions or paths.
_NAMES = (
    "row_id", "bench", "concept", "profile", "backbone", "defense", "variant", "excluded", "degenerate", "image_sha256",
    "regen_backbone", "vlm", "regen_note",
)  # fmt: skip
_CELL = (
    "profile", "backbone", "defense", "variant", "bench", "concept", "metric", "scorer", "policy", "reference",
    "k", "n", "value", "low", "high", "interval", "errors", "excluded", "subset",
)  # fmt: skip


class Destination(NamedTuple):
    """Where to publish, and under which names."""

    mode: Mode
    project: str = PROJECT
    group: str | None = None  # of runs that are looked at together, such as a sweep; None: the run's own name


def mode_of(given: str | None, environment: Mapping[str, str] = os.environ) -> Mode:
    """What was asked for; unasked, online where there is a key of W&B, else disabled.

    Raises:
        UserError: another word.
    """
    if given is None:
        return "online" if environment.get("WANDB_API_KEY") else "disabled"
    for mode in MODES:
        if given == mode:
            return mode
    raise UserError(f"--wandb {given!r}{nearest(given, MODES)} (there are: {', '.join(MODES)})")


def publish(folder: Path, destination: Destination) -> list[str]:
    """Publish every condition of the run in ``folder``; returns the ids of the W&B runs.

    Args:
        folder: of a complete run.
        destination: mode, project and group.

    Raises:
        UserError: there is no complete run, or the client cannot do it (no network, no key, a full disk).
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: no complete run there (it would hold run.json)")
    if destination.mode == "disabled":
        return []
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    cells = cell_files.read(folder / "cells.json")
    scores = pq.read_table(folder / "scores.parquet")
    ids = []
    for condition in record["conditions"]:
        own = [c for c in cells if (c.defense, c.bench) == (condition["defense"], condition["bench"])]
        rows = scores.filter(
            pc.and_(pc.equal(scores["defense"], condition["defense"]), pc.equal(scores["bench"], condition["bench"]))
        )
        ids.append(_publish_condition(folder, destination, record, condition, own, public_scores(rows)))
    return ids


def public_scores(scores: pa.Table) -> pa.Table:
    """The raw scores less every column of text that could hold a prompt, a caption or a path.

    Rows of imported images are named by a hash: their names are those of files.
    """
    kept = [
        field.name
        for field in scores.schema
        if field.name in _NAMES or _is_error(field.name) or not _holds_text(field.type)
    ]
    public = scores.select(kept)
    imported = pc.equal(scores["defense"], "imported").to_pylist()
    for name in ("row_id", "bench"):
        values = [
            hashlib.sha256(value.encode()).hexdigest()[:16] if hidden else value
            for value, hidden in zip(public[name].to_pylist(), imported, strict=True)
        ]
        public = public.set_column(public.column_names.index(name), name, pa.array(values, pa.string()))
    return public


def run_id(run: str, condition: Mapping[str, Any]) -> str:
    """A W&B run's id: the same whenever the same condition of the same run is published."""
    return hashlib.sha256(json.dumps([run, condition["defense"], condition["bench"]]).encode()).hexdigest()[:16]


def _publish_condition(
    folder: Path,
    destination: Destination,
    record: Mapping[str, Any],
    condition: Mapping[str, Any],
    cells: Sequence[Cell],
    scores: pa.Table,
) -> str:
    import wandb

    own_id = run_id(record["run"], condition)
    bench = condition["bench"] if condition["defense"] != "imported" else "imported images"
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
    )
    try:
        with wandb.init(
            project=destination.project,
            id=own_id,
            name=f"{condition['defense']} over {bench}",
            group=destination.group or record["run"],
            mode=destination.mode,
            dir=str(folder),
            config=_config(record, condition, bench),
            resume="allow",
            reinit="finish_previous",
            settings=settings,
        ) as run:
            run.summary.update(dict(_summary(cells)))
            table = wandb.Table(columns=list(_CELL), data=[[getattr(c, name) for name in _CELL] for c in cells])
            logged: dict[str, Any] = {"cells": table}
            rates = [[f"{c.variant}, {c.policy}", c.value] for c in cells if c.metric == ASR and c.value is not None]
            if rates:
                bars = wandb.Table(columns=["variant and policy", "ASR"], data=rates)
                logged["asr"] = wandb.plot.bar(bars, "variant and policy", "ASR", title=f"ASR over {bench}")
            run.log(logged)
            with TemporaryDirectory() as held:
                path = Path(held) / "scores.parquet"
                pq.write_table(scores, path, compression="zstd")
                artifact = wandb.Artifact(f"scores-{own_id}", type="scores", metadata={"rows": scores.num_rows})
                artifact.add_file(str(path))
                run.log_artifact(artifact)
                run.finish()
    except (wandb.errors.Error, OSError) as error:
        raise UserError(f"W&B: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}") from error
    return own_id


def _config(record: Mapping[str, Any], condition: Mapping[str, Any], bench: str) -> dict[str, Any]:
    """Resolved cards and fingerprints of a condition; no command and no path, which name the user's folders."""
    return {
        "run": record["run"],
        "harness": record["harness"],
        "profile": record["profile"],
        "backbone": record["backbone"],
        "defense": condition["defense"],
        "defended_concept": condition["defended"],
        "bench": bench,
        "concept": condition["concept"],
        "rows": condition["rows"],
        "total_rows": condition["total_rows"],
        "variants": {v["variant"]: {"method": v["method"], "settings": v["settings"]} for v in condition["variants"]},
        "stages": {
            s["stage"]: {"fingerprint": s["fingerprint"], **_without_paths(s["key"])} for s in condition["stages"]
        },
    }


def _without_paths(value: Any) -> Any:
    """A stage's key without what looks like a place on this machine."""
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items() if k not in ("files", "instruction", "turns", "banned")}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value]
    return "(a path)" if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _summary(cells: Sequence[Cell]) -> Iterator[tuple[str, Any]]:
    for c in cells:
        name = "/".join(part for part in (c.variant, c.metric, c.policy or c.scorer, c.reference) if part)
        yield from (
            (f"{name}/{key}", value)
            for key in ("k", "n", "value", "low", "high", "errors", "excluded")
            if (value := getattr(c, key)) is not None
        )


def _is_error(column: str) -> bool:
    return column == "error" or column.partition("@")[0].endswith("_error")


def _holds_text(kind: pa.DataType) -> bool:
    """Whether a column's values are, or hold, text or bytes; labels within detections are a scorer's own words."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or (pa.types.is_list(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)))
    )
