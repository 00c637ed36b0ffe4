"""How far a run is: rows of each stage, what is being done now, and how long it will take.

Read from disk alone: the shards that are published, what each took (``.cost.json``), what workers say that they are
doing (``stages.activity``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.pipeline import build_progress
from harness.pipeline.plan import Plan
from harness.pipeline.stages import activity
from harness.store.shards import Store

_PAUSE_S = 0.5  # between two looks at the store


class StageProgress(NamedTuple):
    """Rows of one stage."""

    done: int
    total: int
    seconds: float | None = None  # for a row, as measured in this run; None: not known yet


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How far a run is."""

    doing: str  # in a few words
    notice: str = ""  # what is to be said at once and once, whatever is being done: that the run is stopping
    stages: Mapping[str, StageProgress] = field(default_factory=dict)
    eta_s: float | None = None  # seconds to go by the rows' measured time; None: not known
    at_least: bool = False  # whether ``eta_s`` leaves out stages that have not begun
    cells: tuple[int, int] | None = None  # of a sweep: cells of which every stage is done, and cells in all
    errors: int = 0  # rows that failed, now or in an earlier start


Progress = Callable[[Snapshot], None]


class Watch:
    """Calls ``progress`` with a snapshot of the run twice a second."""

    def __init__(self, plan: Plan, store: Store, run: Path, workers: int, progress: Progress) -> None:
        self._store, self._run, self._workers, self._progress = store, run, max(workers, 1), progress
        self._plan = plan
        self._rows: dict[str, dict[Path, int]] = {}  # stage -> shard's path -> rows
        for condition in plan.conditions:
            for spec in condition.stages:
                own = self._rows.setdefault(spec.stage, {})
                for shard in condition.shards:
                    own[store.path(spec.stage, spec.fingerprint, shard.key)] = shard.rows.num_rows
        self._before = {stage: self._published(paths) for stage, paths in self._rows.items()}
        self._costs: dict[Path, tuple[float, int]] = {}
        self._doing = self._notice = ""
        self.errors = 0  # rows that failed, as the driver has heard
        self._cells = [self._paths_of(*cell) for cell in plan.cells]
        self._done = threading.Event()

    def _paths_of(self, condition: int, variant: str) -> set[Path]:
        """The shards of all that a variant's numbers come from."""
        own = self._plan.conditions[condition]
        (chosen,) = (v for v in own.variants if v.name == variant)
        return {self._store.path(s.stage, s.fingerprint, shard.key) for s in chosen.stages for shard in own.shards}

    def announce(self, notice: str) -> None:
        """Tell at once what must not be lost among what workers do."""
        self._notice = notice
        self._progress(self._look())

    def say(self, doing: str) -> None:
        """Report at once what the driver is doing; shown until workers report what they do."""
        self._doing = doing
        self._progress(self._look())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Report while the block runs, and once more after it."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            self._progress(self._look())

    def _watch(self) -> None:
        while not self._done.wait(_PAUSE_S):
            self._progress(self._look())

    def _look(self) -> Snapshot:
        said = activity.read(self._run)
        there = {stage: self._published(paths) for stage, paths in self._rows.items()}
        stages = {s: self._stage(s, there[s], [a for a in said if a["stage"] == s]) for s in self._rows}
        published = set[Path]().union(*there.values())
        to_go = {name: s for name, s in stages.items() if s.done < s.total}
        known = [(s.total - s.done) * s.seconds for s in to_go.values() if s.seconds is not None]
        return Snapshot(
            doing=", ".join(build_progress.words(self._plan, self._store)) or _words(said) or self._doing,
            notice=self._notice,
            stages=stages,
            eta_s=sum(known) / self._workers if known else None,
            at_least=len(known) < len(to_go),
            cells=(sum(paths <= published for paths in self._cells), len(self._cells)) if self._cells else None,
            errors=self.errors,
        )

    def _stage(self, stage: str, published: set[Path], said: list[dict[str, Any]]) -> StageProgress:
        paths = self._rows[stage]
        for path in published - self._before[stage]:
            if path not in self._costs and (cost := self._store.cost(path)):
                self._costs[path] = (cost["seconds"], cost["rows"])
        measured = [self._costs[p] for p in published - self._before[stage] if p in self._costs]
        open_shards = {p.stem for p in paths.keys() - published}
        at_work = [a for a in said if a["shard"] in open_shards and a["done"]]
        measured += [(time.time() - a["started"], a["done"]) for a in at_work if not measured]
        rows = sum(rows for _, rows in measured)
        total = sum(paths.values())
        done = sum(paths[p] for p in published) + sum(a["done"] for a in at_work)
        return StageProgress(min(done, total), total, sum(s for s, _ in measured) / rows if rows else None)

    @staticmethod
    def _published(paths: Mapping[Path, int]) -> set[Path]:
        """The shards among ``paths`` that are there; one look into each folder."""
        there: set[Path] = set()
        for folder in {p.parent for p in paths}:
            names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
            there |= {p for p in paths if p.parent == folder and p.name in names}
        return there


def _words(said: list[dict[str, Any]]) -> str:
    """What workers do, in a few words, each once."""
    words = []
    for a in said:
        if a.get("loading"):
            words.append(f"loading the model of {a['stage']}")
        elif a.get("steps"):
            words.append(f"{a['stage']}: step {a['steps'][0]} of {a['steps'][1]}")
        else:
            words.append(f"{a['stage']}: row {min(a['done'] + 1, a['rows'])} of {a['rows']} of a shard")
    return ", ".join(dict.fromkeys(words))
