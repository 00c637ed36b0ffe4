"""SafeRedir's table of a task from runs: FSR, CSDR, PDR and the degenerate rate of each method.

FSR (forgetting success rate) is the share of images in which the published head does not see the concept; CSDR and
PDR (person detection rate) say how much of the rest of the image is left. All three are of the prompts with the
concept; CSDR also reads the undefended model's images for the same prompts without its words, from the same run.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from harness.data.concepts import is_shapes_world
from harness.errors import UserError, nearest
from harness.metrics import cells, rates
from harness.metrics.cells import ASR, Cell, ResultGroup, result_groups
from harness.metrics.comparison import BASE, NONE
from harness.metrics.csdr import SCORE, Csdr, csdr
from harness.metrics.measure import measure
from harness.report import latex, markdown, text
from harness.report.html.page import render as html_page
from harness.report.table_view import TableView, cell_lines, to_csv
from harness.scorers import word_removed

if TYPE_CHECKING:
    from harness.cards.policy import PolicyCard

NAME = "saferedir"
FORMATS = ("terminal", "md", "latex", "csv", "html", "json")
ADULTS = "adult groups only (150 of 250 prompts): not comparable with the published 250"
_HEAD = ("method", "FSR k/n, 95%", "CSDR %, 95%", "PDR k/n, 95%", "degenerate", "errors", "excluded")


@dataclass(frozen=True)
class Task:
    """What SafeRedir has a method forget."""

    concept: str
    title: str
    people: bool = False  # its prompts are of people: PDR
    pairs: bool = False  # its prompts are published without the concept's words, too: CSDR
    note: str = ""

    @property
    def forget(self) -> str:
        return f"saferedir-{self.concept}-forget"

    @property
    def retain(self) -> str:
        return f"saferedir-{self.concept}-retain"

    @property
    def policy(self) -> str:
        return f"saferedir-{self.concept}"


PERSON = "saferedir-person"  # the policy that sees people
_SCORERS = {"FSR": "saferedir_head", "CSDR": "word_removed", "PDR": "person"}
TASKS = (
    Task("nudity", "Nudity", people=True, pairs=True, note=ADULTS),
    Task("van-gogh", "Van Gogh", pairs=True),
    Task(
        "church", "Church", note="no CSDR: the retain set is of other objects, not of the same prompts without a word"
    ),
)


@dataclass(frozen=True, kw_only=True)
class Share:
    """k of n with an interval, as fractions; by prompt where prompts have several samples."""

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None
    interval: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method on one task. A measure is None where its scorer did not run, or the task has none."""

    run: str
    profile: str
    backbone: str
    defense: str
    variant: str
    fsr: Share | None
    csdr: Csdr | None
    pdr: Share | None
    degenerate_k: int
    degenerate_n: int
    errors: int  # rows that were not drawn, or that the head (without it the other scorers) failed on
    excluded: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return text.joined(self.defense, self.variant)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One task over all runs."""

    task: Task
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def rows(self) -> Iterator[list[str]]:
        """The cells of each line, as ``_HEAD``; of several runs, which one and its backbone stand before the method."""
        numbers = {run: i for i, run in enumerate(dict.fromkeys(line.run for line in self.lines), 1)}
        for line in self.lines:
            first = f"#{numbers[line.run]} {line.backbone}: {line.method}" if len(numbers) > 1 else line.method
            degenerate = f"{line.degenerate_k}/{line.degenerate_n}"
            numbers_of = [_share(line.fsr), _difference(line.csdr), _share(line.pdr), degenerate]
            yield [first, *numbers_of, str(line.errors), str(line.excluded)]

    def legend(self) -> list[str]:
        """What the numbers need said."""
        runs = dict.fromkeys((line.run, line.profile, line.backbone) for line in self.lines)
        lines = [
            f"#{i} {run}: profile {profile}, backbone {backbone}" for i, (run, profile, backbone) in enumerate(runs, 1)
        ]
        return lines + list(self.notes)

    def view(self) -> TableView:
        """The table as every format shows it."""
        return TableView(f"SafeRedir, {self.task.title}", _HEAD, list(self.rows()), self.legend())

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task.concept,
            "benchmarks": {"forget": self.task.forget, "retain": self.task.retain},
            "lines": [asdict(line) for line in self.lines],
            "notes": list(self.notes),
        }


def assemble(runs: Sequence[Path], policies: Mapping[str, PolicyCard]) -> list[Table]:
    """A table for each task that any of the runs has prompts of.

    Args:
        runs: folders of finished runs.
        policies: by name: each task's, and PERSON.

    Raises:
        UserError: a run's files cannot be read, or no run has any of the benchmarks.
        ConservationError: rows were lost or doubled.
    """
    tables = []
    for task in TASKS:
        lines: list[Line] = []
        notes = [task.note] if task.note else []
        for run in runs:
            source = _Source.read(run)
            lines += _lines(source, task, policies, notes)
        if lines:
            tables.append(Table(task=task, lines=tuple(lines), notes=tuple(dict.fromkeys(notes))))
    if not tables:
        names = ", ".join(task.forget for task in TASKS)
        raise UserError(f"no rows of SafeRedir's protocol in {', '.join(map(str, runs))} (its benchmarks: {names})")
    return tables


@dataclass(frozen=True)
class _Source:
    """A run as it lies on disk."""

    folder: Path
    scores: pa.Table
    subsets: Mapping[str, str]  # benchmark -> "16/95"
    settings: Mapping[
        tuple[str, str, str], Mapping[str, Any]
    ]  # of a method on a benchmark, what departs from the cards
    removed: tuple[str, ...]  # words that word_removed took out

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def read(cls, folder: Path) -> _Source:
        """The run in ``folder``.

        Raises:
            UserError: it has no scores, or what it has cannot be read.
        """
        from harness.store.shards import read

        try:
            record = json.loads((folder / "run.json").read_text())
            scores = read(folder / "scores.parquet")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no finished run ({error})") from None
        own = cells.read(folder / "cells.json")
        settings = {(c.defense, c.variant, c.bench): c.settings for c in own if c.settings}
        return cls(folder, scores, text.subsets(own), settings, word_removed.words_of(_removed_params(record)))

    def of(self, bench: str) -> pa.Table:
        return self.scores.filter(pc.equal(self.scores["bench"], bench))


def _removed_params(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the run had ``word_removed`` set."""
    for condition in record.get("conditions", ()):
        for stage in condition.get("stages", ()):
            if stage.get("stage") == "score-word_removed":
                return dict(stage["key"].get("params", {}))
    return {}


def _lines(source: _Source, task: Task, policies: Mapping[str, PolicyCard], notes: list[str]) -> list[Line]:
    """A line for each method of a run; what is missing or odd is added to ``notes``."""
    forget, retain = source.of(task.forget), source.of(task.retain)
    if not forget.num_rows:
        return []
    judge, person = policies[task.policy], policies[PERSON]
    chosen = [p for p in (judge, person) if _scored(p, forget) and (p is judge or task.people)]
    measured: list[Cell] = measure(forget, {task.concept: chosen}) if chosen else []
    reference = retain.filter(pc.and_(pc.equal(retain["defense"], NONE), pc.equal(retain["variant"], BASE)))
    paired = task.pairs and _has(forget, SCORE) and _has(reference, SCORE)
    lines = [
        _line(source, group, {c.policy: c for c in measured if c.metric == ASR and _is_of(c, group)}, judge, person)
        for group in result_groups(forget)
    ]
    if paired:
        lines = [
            replace(line, csdr=csdr(group.rows, reference, lambda text: word_removed.remove(text, source.removed).text))
            for line, group in zip(lines, result_groups(forget), strict=True)
        ]
    used = [*(policy.name for policy in chosen), *([SCORE] if _has(forget, SCORE) else [])]
    notes += _missing(source, task, used, reference)
    notes += _odd(source, task, lines)
    return lines


def _line(
    source: _Source, group: ResultGroup, by_policy: Mapping[str | None, Cell], judge: PolicyCard, person: PolicyCard
) -> Line:
    """One method's numbers but for CSDR."""
    judged, seen = by_policy.get(judge.name), by_policy.get(person.name)
    blank = rates.count(rates.degenerate(group.rows))
    excluded = group.rows.num_rows - group.rows["excluded"].null_count
    counted = judged or seen
    failed = pc.sum(pc.and_(pc.is_valid(group.rows["error"]), pc.is_null(group.rows["excluded"]))).as_py() or 0
    return Line(
        run=source.name,
        profile=group.profile,
        backbone=group.backbone,
        defense=group.defense,
        variant=group.variant,
        fsr=_complement(judged) if judged else None,
        csdr=None,
        pdr=_of(seen) if seen else None,
        degenerate_k=blank.k,
        degenerate_n=blank.n,
        errors=counted.errors if counted else int(failed),
        excluded=excluded,
        settings=dict(source.settings.get((group.defense, group.variant, group.bench), {})),
    )


def _is_of(cell: Cell, group: ResultGroup) -> bool:
    return all(getattr(cell, name) == value for name, value in group.identity().items())


def _has(table: pa.Table, column: str) -> bool:
    """Whether a scorer ran, by a column of it that has a value."""
    return column in table.column_names and table[column].null_count < table.num_rows


def _scored(policy: PolicyCard, table: pa.Table) -> bool:
    return all(_has(table, name) for name in policy.rule.any_of)


def _of(cell: Cell) -> Share:
    return Share(k=cell.k or 0, n=cell.n, value=cell.value, low=cell.low, high=cell.high, interval=cell.interval)


def _complement(cell: Cell) -> Share:
    """FSR from the rate at which the concept is seen."""
    flipped = [None if x is None else 1 - x for x in (cell.value, cell.high, cell.low)]
    value, low, high = flipped
    return Share(k=cell.n - (cell.k or 0), n=cell.n, value=value, low=low, high=high, interval=cell.interval)


def _missing(source: _Source, task: Task, used: Sequence[str], reference: pa.Table) -> Iterator[str]:
    """What a run has no numbers for, and the command that gives them."""
    wanted = {"FSR": task.policy} | ({"CSDR": SCORE} if task.pairs else {}) | ({"PDR": PERSON} if task.people else {})
    lacking = [name for name, by in wanted.items() if by not in used]
    if lacking:
        command = f"harness score {source.folder} --scorer {','.join(_SCORERS[name] for name in lacking)}"
        yield f"{source.name}: no {', '.join(lacking)}; add with `{command}`"
    if "FSR" in lacking:
        key = task.concept.replace("-", "_")
        yield f"FSR needs the task's head, settings.saferedir_head.{key} of the profile: docs/saferedir.md"
    if task.pairs and not reference.num_rows:
        yield (
            f"{source.name}: no CSDR without the undefended model's images of {task.retain} in the same run: "
            f"`harness eval --defense NAME --bench {task.forget},{task.retain}`"
        )


def _odd(source: _Source, task: Task, lines: Sequence[Line]) -> Iterator[str]:
    """What a reader must know of a run's numbers."""
    for bench in (task.forget, task.retain):
        if bench in source.subsets:
            yield f"{source.name}: subset {source.subsets[bench]} rows of {bench}"
    for line in lines:
        if line.csdr is not None and line.csdr.missing:
            reasons = ", ".join(f"{reason} {rows}" for reason, rows in line.csdr.missing.items())
            yield f"{source.name}: {line.method}: rows without a pair for CSDR: {reasons}"
        if line.settings:
            said = ", ".join(f"{name} {value}" for name, value in line.settings.items())
            yield f"{source.name}: {line.method}: {said}"
        plain = (line.defense, line.variant) == (NONE, BASE)
        if plain and line.fsr is not None and line.fsr.value is not None and line.fsr.value > 0.5:
            yield (
                f"{source.name}: the head sees the concept in less than half of the undefended model's images; "
                "its labels may be the other way round (docs/saferedir.md), or the backbone cannot draw it"
            )
        if line.degenerate_k:
            yield "degenerate (black, flat, noise) images count as forgotten: read FSR beside their rate"
    if any(is_shapes_world(line.profile) or is_shapes_world(line.backbone) for line in lines):
        yield "numbers of the shapes world say nothing of Stable Diffusion 1.4"


def render(tables: Sequence[Table], form: str) -> str:
    """The tables as text.

    Args:
        tables: as ``assemble`` gives them.
        form: one of FORMATS.

    Raises:
        UserError: another form.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form!r}{nearest(form, FORMATS)} (report {NAME} has: {', '.join(FORMATS)})")
    if form == "json":
        return json.dumps({"report": NAME, "tables": [t.to_json() for t in tables]}, ensure_ascii=False, indent=1)
    views = [table.view() for table in tables]
    if form == "csv":
        return to_csv(views)
    if form == "html":
        return html_page("table.html.j2", title="SafeRedir", stamps=[], tables=views).rstrip()
    one = {"md": markdown.view_page, "latex": latex.view_fragment, "terminal": _text}[form]
    return "\n\n".join(map(one, views))


def _text(view: TableView) -> str:
    """A table for a terminal."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    live = sys.stdout.isatty()
    grid = Grid(
        title=view.title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, name in enumerate(view.head):
        grid.add_column(name, justify="right" if i else "left")
    for row in view.rows:
        grid.add_row(*("\n".join(cell_lines(cell)) for cell in row))
    console = Console(file=io.StringIO(), width=None if live else 160, force_terminal=live or None)
    with console.capture() as captured:
        console.print(grid)
        for line in view.notes:
            console.print(Text(line), soft_wrap=True)
    return captured.get().rstrip()


def _share(share: Share | None) -> str:
    if share is None or share.value is None or share.low is None or share.high is None:
        return "—"
    return f"{share.k}/{share.n} {text.percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _difference(csdr: Csdr | None) -> str:
    """As 4.21 [3.90, 4.55] n 750."""
    if csdr is None or csdr.value is None:
        return "—"
    ends = "" if csdr.low is None or csdr.high is None else f" [{csdr.low:.2f}, {csdr.high:.2f}]"
    return f"{csdr.value:.2f}{ends} n {csdr.n}"
