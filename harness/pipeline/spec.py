"""A stage of a run, as data: what its worker needs, what its output depends on, what it reads and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class BuildCost(NamedTuple):
    """Estimated seconds, steps and images of building one artefact."""

    defense: str
    concept: str
    kind: str  # of artefact, one of `harness.defenses.KINDS`
    steps: int  # of optimisation; 0 for a closed form and for published weights, which take seconds
    images: int  # training images to be drawn
    seconds: float  # on one device
    memory_gb: float
    disk_mb: float  # at most, while it is built

    @property
    def is_long(self) -> bool:
        """Whether it is worth a phase of its own: something is trained or drawn."""
        return bool(self.steps or self.images)

    def __str__(self) -> str:
        """In a few words, for people."""
        parts = [f"{self.steps} steps"] if self.steps else []
        parts += [f"{self.images} training images"] if self.images else []
        if not parts:
            return f"{self.defense} ({self.concept}): seconds"
        return f"{self.defense} ({self.concept}): {', '.join(parts)}, about {self.seconds / 3600:.2g} hours"


class Source(NamedTuple):
    """The shards that a stage reads."""

    stage: str
    fingerprint: str
    keys: Mapping[str, str] | None = None  # a shard's key to the source's; None: they are the same


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of one condition: what a worker needs to know, and the key of its fingerprint."""

    stage: str  # folder in the store and place in the flow: "generate", "score-nudenet"
    kind: str  # module in harness.stages: "generate", "caption", ..., "score"
    worker: Mapping[str, Any]  # what the stage's load() takes; plain data
    key: Mapping[str, Any]  # everything the output depends on
    upstream: tuple[Source, ...] = ()  # whose columns, side by side, are its input; none: the ticket's rows
    reference: Source | None = None  # whose images it compares with
    gpu: bool = False  # whether it runs on a GPU where there is one
    memory_gb: float = 0.0  # of one copy at work there
    seconds_per_image: float = 0.0  # of what draws, by its card's estimate
    packages: tuple[str, ...] = ()  # import packages beside ours whose modules it runs
    builds: tuple[StageSpec, ...] = ()  # artefacts that it is loaded with
    build: BuildCost | None = None  # of a build: what it takes
    accepted: tuple[tuple[str, Any, Any], ...] = ()  # of stored results: key, its value then, and today
    fingerprint: str

    @property
    def is_long(self) -> bool:
        """Whether it is a build that trains or draws, rather than one that takes seconds."""
        return self.build is not None and self.build.is_long

    @property
    def source(self) -> Source:
        """This stage's output, as an input of another."""
        return Source(self.stage, self.fingerprint)
