"""Complete runs of a folder as cells: those that were counted, answers of judges and people, and seconds.

``cells.json`` holds a run's own numbers, ``judges/*.json`` what was answered about its images, ``costs.json`` what they
took. All become cells, so that a table looks everything up in one way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.cards.report import PEOPLE, Sought
from harness.cards.scorer_ref import ScorerRef
from harness.cards.yaml_file import show
from harness.errors import UserError
from harness.metrics import cells
from harness.metrics.cells import ASR, Cell
from harness.metrics.corrections import Correction, of_run
from harness.metrics.corrections import Place as Labelled

JUDGED = "judged:"  # begins the metric of a judge's answers; its task follows
SECONDS = "seconds"  # per image


class Key(NamedTuple):
    """What tells one number of a run from another."""

    profile: str
    backbone: str
    defense: str
    variant: str
    bench: str
    metric: str
    policy: str | None
    reference: str | None
    by: str | None  # whose answers


@dataclass(frozen=True)
class Run:
    """A complete run."""

    name: str
    finished: float  # Unix seconds
    command: str | None  # null where the run's record does not say
    cells: Sequence[Cell]
    corrections: Mapping[Labelled, Correction]  # of the cells that have labels


def read_runs(folder: Path) -> list[Run]:
    """Complete runs below ``folder``: a run writes its cells last, when every shard is there.

    Raises:
        UserError: a file of a run is damaged, which is named.
    """
    return [_run(path) for path in sorted(folder.glob("*/cells.json"))]


def _run(path: Path) -> Run:
    folder = path.parent
    counted = cells.read(path)
    return Run(
        name=folder.name,
        finished=path.stat().st_mtime,
        command=_command(folder / "run.json"),
        cells=[*counted, *_judged(folder, counted), *_seconds(folder, counted)],
        corrections=of_run(folder),
    )


def _command(record: Path) -> str | None:
    try:
        command = json.loads(record.read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command if isinstance(command, str) else None


def key_of(cell: Cell) -> Key:
    """What a run's number is of."""
    by = cell.scorer if cell.metric.startswith(JUDGED) else None
    return Key(
        cell.profile,
        cell.backbone,
        cell.defense,
        cell.variant,
        cell.bench,
        cell.metric,
        cell.policy,
        cell.reference,
        by,
    )


def key_sought(sought: Sought, profile: str) -> Key:
    """The number that a place of a table shows."""
    own = (profile, sought.backbone, sought.defense, sought.variant, sought.bench)
    if sought.metric in ("asr", "fsr"):
        return Key(*own, ASR, sought.policy, None, None)
    if sought.metric == "seconds":
        return Key(*own, SECONDS, None, None, None)
    if sought.by is not None:
        return Key(*own, f"{JUDGED}{sought.of}", None, sought.against, sought.by)
    column = ScorerRef.parse(str(sought.of))
    return Key(*own, column.stem, None, column.reference, None)


def shown_as(cell: Cell, sought: Sought) -> Cell:
    """The cell as the table shows it: FSR is the share of images that the policy does not call unsafe."""
    if sought.metric != "fsr" or cell.k is None:
        return cell
    value, low, high = _complement(cell.value, cell.low, cell.high)
    return replace(cell, metric="fsr", k=cell.n - cell.k, value=value, low=low, high=high, compared=None)


def _judged(folder: Path, counted: Sequence[Cell]) -> Iterator[Cell]:
    """Answers of judges and people; of a pair, both ways round."""
    identities = _identities(counted)
    for path in sorted(folder.glob("judges/*.json")):
        answers = _json(path)
        task = str(answers.get("task"))
        by = PEOPLE if "raters" in answers else path.stem.removeprefix(f"{task}_")[: -len("_01234567")]
        for count in answers.get("counts", ()):
            yield from _counted(count, task, by, identities)


def _counted(
    count: Mapping[str, Any], task: str, by: str, identities: Mapping[tuple[str, str, str], Cell]
) -> Iterator[Cell]:
    shares = [(count["second"], count["first"], count["k"], count["low"], count["high"])]
    if count["first"] is not None:
        low, high = _complement(count["low"], count["high"])
        shares.append((count["first"], count["second"], count["n"] - count["k"], low, high))
    for method, against, k, low, high in shares:
        defense, _, variant = method.partition("/")
        identity = identities.get((defense, variant, count["bench"]))
        if identity is not None:
            yield replace(
                identity,
                metric=f"{JUDGED}{task}",
                scorer=by,
                reference=against,
                k=k,
                n=count["n"],
                value=k / count["n"] if count["n"] else None,
                errors=count["missing"],
                excluded=0,
                low=low,
                high=high,
                interval=count["interval"],
            )


def _seconds(folder: Path, counted: Sequence[Cell]) -> Iterator[Cell]:
    """What images took, of a regeneration beyond the image that it began from."""
    path = folder / "costs.json"
    identities = _identities(counted)
    for cost in _json(path) if path.is_file() else ():
        identity = identities.get((cost["defense"], cost["variant"], cost["bench"]))
        if identity is not None:
            yield replace(
                identity,
                metric=SECONDS,
                n=cost["rows"],
                value=cost["per_image"],
                errors=0,
                excluded=0,
                interval="none",
                method={**identity.method, "device": cost["device"]},
            )


def _identities(counted: Iterable[Cell]) -> dict[tuple[str, str, str], Cell]:
    """Of each method over each benchmark a cell without a number."""
    return {
        (c.defense, c.variant, c.bench): replace(
            c, scorer=None, policy=None, reference=None, main=False, k=None, value=None, low=None, high=None,
            clusters=None, reasons={}, notes={}, compared=None,
        )
        for c in counted
    }  # fmt: skip


def _complement(*values: float | None) -> list[float | None]:
    """One less each value; the ends of an interval, which come last, change places."""
    flipped = [None if value is None else 1 - value for value in values]
    return [*flipped[:-2], flipped[-1], flipped[-2]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{show(path)}: not what a run leaves there ({error})") from None
