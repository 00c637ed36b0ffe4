"""A condition: one defense over one benchmark, its stages and its rows in shards.

A *shard* is a fixed group of rows, cut once, the same for every stage. A *variant* is the images as drawn (``base``)
or as a regenerator makes them anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from harness.pipeline.spec import StageSpec
from harness.store import fingerprint


@dataclass(frozen=True)
class Shard:
    """A group of rows: its content key, and the rows with the identity of their condition."""

    key: str
    rows: pa.Table


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The stages that make one kind of images of a condition, as drawn or regenerated, and those that score them."""

    name: str  # "base", or the regenerator's name
    steps: tuple[StageSpec, ...]  # the last one publishes the images
    scores: tuple[StageSpec, ...]
    method: Mapping[str, Any] = field(default_factory=dict)  # of the regenerator: alpha, lam, tokens, ...
    settings: Mapping[str, Any] = field(default_factory=dict)  # what departs from its paper

    @property
    def images(self) -> StageSpec:
        return self.steps[-1]

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """All stages that the variant's numbers come from."""
        return (*self.steps, *self.scores)


class LeftOut(NamedTuple):
    """A pair that ``all`` did not select: a benchmark, and a defense whose card lacks that benchmark's concept."""

    defense: str
    bench: str
    concept: str


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One defense over one benchmark."""

    defense: str
    bench: str
    concept: str  # the benchmark's: what is scored
    defended: str  # the defense's: the same unless --concept says otherwise
    total_rows: int  # of the benchmark, before --limit and --ids
    variants: tuple[Variant, ...]  # "base" first
    shards: tuple[Shard, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # of a folder of images: files that are none, by reason

    @property
    def num_rows(self) -> int:
        """Number of prompts; each has one image per variant."""
        return sum(s.rows.num_rows for s in self.shards)

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """Every stage once: the images' first, then the scores'."""
        specs = [s for v in self.variants for s in v.steps] + [s for v in self.variants for s in v.scores]
        return tuple({(s.stage, s.fingerprint): s for s in specs}.values())


def shards_of(rows: pa.Table, size: int) -> Iterator[Shard]:
    """``rows`` cut into groups of ``size``; a shard's key is the hash of its members' inputs."""
    for start in range(0, rows.num_rows, size):
        part = rows.slice(start, size).combine_chunks()
        known = part.drop_columns(["source"]) if "source" in part.column_names else part  # a path identifies nothing
        content = hashlib.sha256(repr(known.to_pylist()).encode()).hexdigest()
        yield Shard(content[: fingerprint.LENGTH], part)
