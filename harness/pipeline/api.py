"""The harness from Python: evaluate a condition, read a run, look at its images. The same engine as the command line.

import harness

run = harness.evaluate(defense="rece", bench="ring-a-bell-k77", profile="shapes")
run.cells().to_pandas()[["defense", "variant", "k", "n", "low", "high"]]
next(run.images(defense="rece", variant="resafe")).image
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UserError
from harness.metrics import cells as cell_files
from harness.metrics.cells import Cell
from harness.pipeline import hardware
from harness.pipeline.evaluate import Budget
from harness.pipeline.evaluate import evaluate as run_evaluation
from harness.pipeline.request import Places, Request
from harness.store.shards import Store, columns, read

if TYPE_CHECKING:
    from PIL import Image

    from harness.pipeline.progress import Progress

Names = str | Sequence[str]
STORE, OUT, DATA = Path(".harness/store"), Path("runs"), Path(".harness/data")


class RunImage(NamedTuple):
    """One image of a run, with the row that it belongs to."""

    row_id: str
    sample: int
    defense: str
    variant: str
    image: Image.Image


@dataclass(frozen=True)
class Run:
    """A complete run: its folder, and the store that holds its images."""

    path: Path
    store: Path

    @property
    def record(self) -> dict[str, Any]:
        """run.json: command, request, conditions, the key of every fingerprint."""
        record: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        return record

    def cell_list(self) -> list[Cell]:
        """Every number of the run."""
        return cell_files.read(self.path / "cells.json")

    def cells(self) -> pa.Table:
        """Every number of the run as a table, a row per cell; ``.to_pandas()`` where pandas is installed.

        Nested values (method, settings, reasons, the comparison) are JSON text.
        """
        rows = [
            {key: json.dumps(value) if isinstance(value, dict) else value for key, value in cell.to_json().items()}
            for cell in self.cell_list()
        ]
        return pa.Table.from_pylist(rows)

    def scores(self) -> pa.Table:
        """Raw scores, a row per image, without images."""
        return pq.read_table(self.path / "scores.parquet")

    def images(self, defense: str | None = None, variant: str | None = None) -> Iterator[RunImage]:
        """The run's images, decoded; rows without one are left out.

        Args:
            defense: only of this one.
            variant: only ``base``, or a regenerator's name.

        Raises:
            UserError: the store does not hold the run's images (any more).
        """
        store = Store.open_existing(self.store)
        for condition in self.record["conditions"]:
            for held in condition["variants"]:
                if defense in (None, condition["defense"]) and variant in (None, held["variant"]):
                    stage, fingerprint = held["images"]
                    for shard in condition["shards"]:
                        yield from _images(store.path(stage, fingerprint, shard))


def _images(shard: Path) -> Iterator[RunImage]:
    import io

    from PIL import Image

    if not shard.is_file() or "image" not in columns(shard):
        raise UserError(f"the store does not hold {shard}: repeat the run's command, which draws what is missing")
    for row in read(shard, ["row_id", "sample", "defense", "variant", "image"]).to_pylist():
        if row["image"] is not None:
            yield RunImage(**row | {"image": Image.open(io.BytesIO(row["image"]))})


def evaluate(
    *,
    defense: Names,
    bench: Names,
    profile: str = "paper",
    places: Places | None = None,
    executor: str = "ray",
    progress: Progress | None = None,
    **choices: Any,
) -> Run:
    """Draw a prompt set under defenses, make each image anew, score both, count. Prints nothing.

    What is in the store already is not computed again; calling it again after a failure goes on where it stopped.

    Args:
        defense: name, or several; see ``harness list defenses``.
        bench: benchmark, or several.
        profile: which models play which role: ``paper`` or ``shapes``.
        places: folders of store, runs, benchmark files and own cards; by default those of the command line.
        executor: ``ray``, or ``inline`` in this process.
        progress: called with a ``harness.pipeline.progress.Snapshot`` twice a second.
        **choices: further fields of ``harness.pipeline.request.Request``: ``regens``, ``backbone``, ``concept``,
            ``limit``, ``ids``, ``seed``, ``baseline``, ``extra_scorers``.

    Raises:
        UserError: a wrong name or value, something missing on this machine, or the run is incomplete (and why).
    """
    from harness.pipeline.executor import Resources

    places = places or Places(store=STORE, out=OUT, data=DATA)
    request = _request(defense, bench, profile, choices)
    machine = hardware.ask(os.environ.get("RAY_ADDRESS"))
    resources = Resources(
        executor=executor,
        workers=machine.gpus or machine.cores,
        num_gpus=machine.gpus,
        gpu_memory_gb=machine.gpu_memory_gb,
        address=os.environ.get("RAY_ADDRESS"),
    )
    call = f"harness.evaluate(defense={defense!r}, bench={bench!r}, profile={profile!r}{_shown(choices)})"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, in notebooks without ipywidgets
        finished = run_evaluation(request, places, resources, Budget.parse("5%"), progress or _quiet, call)
    if not finished.cells:
        assert finished.outcome is not None
        counts = ", ".join(f"{n} {status}" for status, n in sorted(finished.outcome.statuses.items()))
        details = "; ".join(finished.outcome.details[:3])
        raise UserError(f"the run is not complete ({counts} shards): {details}; call it again to go on")
    return Run(finished.run, places.store)


def load_run(path: str | Path, store: str | Path = STORE) -> Run:
    """A run that was made before, by the command line or from Python.

    Args:
        path: its folder.
        store: where its images lie.

    Raises:
        UserError: there is no complete run.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file() or not (folder / "cells.json").is_file():
        raise UserError(f"{folder}: no complete run there (it would hold run.json and cells.json)")
    return Run(folder, Path(store))


def _request(defense: Names, bench: Names, profile: str, choices: Mapping[str, Any]) -> Request:
    """The request; lists may be given where the command line takes several."""
    allowed = set(Request.__dataclass_fields__) - {"defenses", "benches", "profile", "images"}
    for name in choices:
        if name not in allowed:
            raise UserError(f"evaluate() has no argument {name!r} (further ones: {', '.join(sorted(allowed))})")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in choices.items()
    }
    return Request(defenses=_names(defense), benches=_names(bench), profile=profile, **fields)


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _shown(choices: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in choices.items())


def _quiet(_snapshot: object) -> None:
    """No progress display."""
