"""Benchmark cards: what a prompt set asks for, and its file in each edition, known by sha256."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from harness.cards.base import Amount, Card, Columns, Count, Kind, Model, Seed, Sha256
from harness.cards.yaml_file import show
from harness.errors import UserError


class ColumnMap(Model):
    """Candidates for each of a row's columns, in order of preference; null: the file's column does not count."""

    prompt: Annotated[Columns, Field(min_length=1)]
    seed: Columns | None = None
    guidance: Columns | None = None
    width: Columns | None = None
    height: Columns | None = None
    case: Columns | None = None  # the file's own row number, where it is unique
    guarded: Columns = ()  # texts that the prompt was made from: the guard reads them too
    categories: Columns | None = None  # what a prompt is about, comma separated, for --category


class Known(Model):
    """Another file that goes by the benchmark's name."""

    sha256: Sha256
    rows: Count
    note: str
    use: bool = False  # may stand in for the edition, under a note


class Edition(Model):
    """One file of prompts: identity, where it comes from, what its columns mean."""

    rows: Count
    sha256: Sha256 | None = None
    header: Columns | None = None  # as in the file, to tell a copy that was saved again
    source: str  # "package:..." | "https://..." | "hub:repo@revision/path" | "user"
    access: str | None = None  # how a person gets it
    licence: str
    gated: bool = False
    columns: ColumnMap
    known: tuple[Known, ...] = ()
    made: str  # how it came about
    file: str | None = None  # under what name it is stored, where several benchmarks read it; null: the benchmark's
    task: str | None = None  # the file is JSON, {task: {group: [prompt, ...]}}: read this task; columns group, prompt
    minors: Columns = ()  # groups of the task whose prompts are dropped on reading and counted as excluded
    samples: Count = 1  # images drawn per prompt
    sample_seeds: tuple[Seed, ...] | None = None  # one for each sample, of every prompt; null: the row's, then one up
    seed: Seed = 42  # of a row without one
    guidance: Amount | None = None  # of a row without one; null: the backbone's
    width: Count | None = None
    height: Count | None = None
    drawn_at: Count | None = None  # width of the backbone that a row's size refers to; others draw at their own

    @field_validator("source")
    @classmethod
    def _known_form(cls, source: str) -> str:
        if not re.match(r"package:\S|https://\S|hub:[\w.-]+/[\w.-]+@[\w.-]+/\S|user$", source):
            raise ValueError("must be 'package:PATH', 'https://...', 'hub:OWNER/REPO@REVISION/PATH' or 'user'")
        return source

    @model_validator(mode="after")
    def _consistent(self) -> Edition:
        if self.sample_seeds is not None and len(set(self.sample_seeds)) != self.samples:
            raise ValueError(f"sample_seeds needs {self.samples} different seeds, one for each of the samples")
        if self.sample_seeds is not None and self.columns.seed:
            raise ValueError("sample_seeds stands in for the file's seeds: leave columns.seed out")
        if self.minors and self.task is None:
            raise ValueError("minors names groups, which only a file with a task has")
        return self


class BenchmarkCard(Card):
    """A benchmark: what it asks for, and its file in each edition."""

    KIND: ClassVar[Kind] = "dataset"

    concept: Annotated[str, Field(min_length=1)]
    paper: str
    editions: Annotated[dict[Literal["paper", "shapes"], Edition], Field(min_length=1)]

    def edition(self, name: str) -> Edition:
        """The file that profiles of edition ``name`` read.

        Raises:
            UserError: when the benchmark has no such edition.
        """
        for key, edition in self.editions.items():
            if key == name:
                return edition
        raise UserError(
            f"benchmark {self.name!r} has no {name!r} edition "
            f"(it has: {', '.join(self.editions)}); see {show(self.path)}"
        )
