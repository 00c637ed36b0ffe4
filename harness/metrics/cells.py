"""Cells: one number of a table with all that makes it citable: k/n or a mean, interval, errors, exclusions, provenance.

How they come from a run's scores says ``harness.metrics.measure``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from harness.cards.yaml_file import show
from harness.errors import UserError
from harness.metrics.comparison import Comparison
from harness.store.files import write_atomically

if TYPE_CHECKING:
    from harness.cards.policy import PolicyCard

GROUP = ("profile", "backbone", "defense", "variant", "bench", "concept")
Policies = Mapping[str, Sequence["PolicyCard"]]  # by a benchmark's concept, the main one first

ASR = "asr"  # unsafe of scored
DEGENERATE = "degenerate"  # black, flat or noise, of drawn
PASS_THROUGH = "pass_through"  # of a regeneration: unsafe after, of those unsafe before
HIT_AT = "hit@"  # and k: prompts with an unsafe one among k samples; n is of prompts
ASR_FLAGGED = "asr_if_flagged"  # of a regeneration: ASR had only the flagged images been made anew
FID = "fid"  # of a set: Frechet distance to the undefended images, by Inception features
BOXES = "boxes"  # detections that a policy counts, in how many images: k may exceed n
OF_FLAGGED = "_of_flagged"  # ends the name of a mean over the images that the main policy flagged before


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number. Of a rate, ``value``, ``low`` and ``high`` are fractions; null when nothing was scored."""

    profile: str
    backbone: str
    defense: str
    variant: str
    bench: str
    concept: str
    metric: str  # one of the names above, or the raw column whose mean it is
    scorer: str | None
    policy: str | None
    main: bool  # the first policy of its concept, which the others stand beside
    reference: str | None = None  # of a pair scorer, which compares with another image
    k: int | None  # null: a mean
    n: int
    value: float | None  # k / n, or the mean; of BOXES per image
    errors: int
    excluded: int
    low: float | None  # of the 95% interval
    high: float | None
    interval: str  # "wilson"; "bootstrap" by cluster of a mean, and where a cluster has several rows; "none"
    clusters: int | None = None  # of the n rows: how many are no copies or samples of another's prompt
    fingerprints: tuple[str, ...] = ()
    subset: str | None = None  # "16/95": the rows that were used; null for a whole benchmark
    method: Mapping[str, Any] = field(default_factory=dict)  # of a regeneration: alpha, lam, tokens, ...
    settings: Mapping[str, Any] = field(default_factory=dict)  # what departs from cards and papers: a seed, a concept
    reasons: Mapping[str, int] = field(default_factory=dict)  # of rows not in n: "excluded: age-term" -> rows
    failed_rows: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of an error's reason, the first row_ids
    lost: int = 0  # of a regeneration: rows with a verdict before it and none after (a refusal, the guard on captions)
    notes: Mapping[str, int] = field(default_factory=dict)  # of its rows: "prompt-cut" -> rows; see docs/notes.md
    compared: Comparison | None = None  # with the method it stands on; of an ASR only

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The rate had every row that regeneration lost been safe, and had all been unsafe; null: none is lost."""
        if not self.lost or self.k is None:
            return None
        return self.k / (self.n + self.lost), (self.k + self.lost) / (self.n + self.lost)

    def to_json(self) -> dict[str, Any]:
        """The cell as plain data; ``from_json`` reads it back."""
        bounds = None if self.bounds is None else list(self.bounds)
        return asdict(self) | {"fingerprints": list(self.fingerprints), "bounds": bounds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The cell that ``to_json`` wrote; keys of a newer harness are left out.

        Raises:
            TypeError: a key is missing.
        """
        kept = _known(cls, data)
        compared = kept.get("compared")
        kept["compared"] = Comparison(**_known(Comparison, compared)) if compared is not None else None
        return cls(**kept | {"fingerprints": tuple(kept.get("fingerprints", ()))})


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``data`` is a field of the dataclass ``cls``."""
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in data.items() if key in names}


@dataclass(frozen=True)
class ResultGroup:
    """The rows of one defense and variant over one benchmark."""

    profile: str
    backbone: str
    defense: str
    variant: str
    bench: str
    concept: str
    rows: pa.Table

    def __str__(self) -> str:
        return f"{self.defense}/{self.variant} on {self.bench}"

    def identity(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in GROUP}


def result_groups(scores: pa.Table) -> Iterator[ResultGroup]:
    """The table cut by ``GROUP``, in order of first appearance."""
    numbered = scores.select(list(GROUP)).append_column("_row", pa.array(np.arange(scores.num_rows)))
    grouped = numbered.group_by(list(GROUP), use_threads=False).aggregate([("_row", "list")])
    for entry in grouped.to_pylist():
        rows = entry.pop("_row_list")
        yield ResultGroup(rows=scores.take(pa.array(rows, pa.int64())), **entry)


def write(path: Path, cells: Iterable[Cell]) -> None:
    """Store cells as a JSON list, whole or not at all: that they are there says that their run is complete."""
    write_atomically(path, (json.dumps([cell.to_json() for cell in cells], indent=1) + "\n").encode())


def read(path: Path) -> list[Cell]:
    """The cells of a run.

    Raises:
        UserError: the file is not what ``write`` writes.
    """
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise TypeError("no list")
        return [Cell.from_json(entry) for entry in entries]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{show(path)}: not the cells of a run ({error}); run the eval again") from None
