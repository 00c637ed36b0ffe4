"""A run's cells and the paper's tables on a terminal (rich)."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from harness.cards.yaml_file import show as relative
from harness.metrics.cells import ASR, DEGENERATE, Cell, Policies
from harness.report import text

if TYPE_CHECKING:
    from harness.report.table import Table

_STYLES = {"reproduced": "green", "not told apart": "cyan", "differs": "yellow", "infeasible as printed": "magenta"}
_PLAIN = 120  # characters a line where nobody looks at it live


def show(cells: Sequence[Cell], policies: Policies, paths: Mapping[str, Path], console: Console | None = None) -> None:
    """Print a table per benchmark under its main policy, then under the others, then where things lie.

    Args:
        cells: of one run, as ``harness.metrics.measure.measure`` gives them.
        policies: by concept, the main one first.
        paths: what lies where, in the order in which it is to be printed.
        console: where to; standard output by default.
    """
    console = console or Console(width=None if sys.stdout.isatty() else _PLAIN)
    degenerate = text.degenerate(cells)
    stamped = text.subsets(cells)
    after = text.after(cells)
    for column, by_policy in text.columns(cells).items():
        _, _, bench, concept = column
        subset = f", subset {stamped[bench]}" if bench in stamped else ""
        main, *others = [*by_policy] or [""]
        if not main:
            console.print(_drawn_grid(f"{bench} ({concept}), no policy{subset}", cells, column))
        else:
            console.print(_main_grid(f"{bench} ({concept}), ASR by {main}{subset}", by_policy[main], degenerate))
        if others:
            console.print(_others_grid({name: by_policy[name] for name in others}))
        if column in after:
            console.print(_after_grid(after[column]))
        console.print()
    for line in footer(cells, policies, paths):
        console.print(Text(line), soft_wrap=True)


def _main_grid(title: str, cells: Sequence[Cell], degenerate: Mapping[tuple[str, ...], str]) -> Grid:
    grid = _grid(title, ["ASR k/n, 95%", "", "p (against)", "errors", "excluded", "degenerate"])
    for cell in cells:
        best = cell.compared is not None and cell.compared.best
        p = text.p_value(cell.compared.p_holm if cell.compared else None) + text.against(cell)
        grid.add_row(
            cell.defense,
            cell.variant,
            Text(text.rate(cell) + (f"\n{text.bounds(cell)}" if cell.bounds else ""), style="bold" if best else ""),
            "best" if best else "",
            p,
            Text(str(cell.errors), style="red" if cell.errors else ""),
            str(cell.excluded),
            degenerate[text.place(cell)],
        )
    return grid


def _drawn_grid(title: str, cells: Sequence[Cell], column: text.Column) -> Grid:
    """What is known of images that no policy judges."""
    grid = _grid(title, ["errors", "excluded", "degenerate"])
    for cell in cells:
        if cell.metric == DEGENERATE and (cell.profile, cell.backbone, cell.bench, cell.concept) == column:
            grid.add_row(cell.defense, cell.variant, str(cell.errors), str(cell.excluded), text.counts(cell))
    return grid


def _others_grid(by_policy: Mapping[str, Sequence[Cell]]) -> Grid:
    grid = _grid("by other policies", list(by_policy))
    for row in zip(*by_policy.values(), strict=True):
        grid.add_row(row[0].defense, row[0].variant, *(text.rate(cell) for cell in row))
    return grid


def _after_grid(by_method: Mapping[tuple[str, str], Mapping[str, Cell]]) -> Grid:
    headings = list(dict.fromkeys(name for own in by_method.values() for name in own))
    title = "beside ASR"
    if len(headings) <= len(by_method):
        grid = _grid(title, headings)
        for (defense, variant), own in by_method.items():
            grid.add_row(defense, variant, *(text.brief(own[name]) if name in own else "" for name in headings))
        return grid
    grid = _grid(title, [text.joined(*method) for method in by_method], left=[""])  # more numbers than methods
    for name in headings:
        grid.add_row(name, *(text.brief(own[name]) if name in own else "" for own in by_method.values()))
    return grid


def _grid(title: str, right: Sequence[str], left: Sequence[str] = ("defense", "variant")) -> Grid:
    grid = Grid(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        grid.add_column(name)
    for name in right:
        grid.add_column(name, justify="right")
    return grid


def footer(cells: Sequence[Cell], policies: Policies, paths: Mapping[str, Path]) -> list[str]:
    """The lines below a run's tables: profile, policies, subset, why rows are missing, files."""
    profiles = ", ".join(dict.fromkeys(c.profile for c in cells))
    world = text.world(cells)
    lines = [f"profile   {profiles}" + (f": {world}" if world else "")]
    used = {c.policy for c in cells}
    cards = {p.name: p for chosen in policies.values() for p in chosen if p.name in used}
    lines += [f"policy    {p.name}: {text.rule(p.model_dump())}" for p in cards.values()]
    lines += [f"method    {line}" for line in text.methods(cells)]
    lines += [f"subset    {bench}: {subset} rows" for bench, subset in text.subsets(cells).items()]
    lines += [f"missing   {line}" for line in text.missing(cells)]
    lines += [f"copies    {line}" for line in text.copies(cells)]
    lines += [f"noted     {line}" for line in text.notes(cells)]
    if any(c.metric == ASR for c in cells):
        lines.append(f"rates     {text.UNCORRECTED}")
    if any(c.compared and c.compared.best for c in cells):
        lines.append(f"best      {text.BEST}")
    lines += [f"best      {line}" for line in text.undecided(c for c in cells if c.main)]
    return lines + [f"{name:<9} {relative(Path(path).absolute())}" for name, path in paths.items()]


def table_text(table: Table, width: int | None = None) -> str:
    """A paper's table as text, coloured where standard output is a terminal.

    Args:
        width: characters a line; by default the terminal's, or what the table needs.
    """
    live = sys.stdout.isatty()
    if width is None:
        width = Console().width if live else 70 + 24 * len(table.card.columns)
    console = Console(file=io.StringIO(), width=width, force_terminal=live or None)
    with console.capture() as captured:
        console.print(_table_grid(table))
        for line in (*table.footnotes(), *table.legend(), *map(str, table.origins())):
            console.print(Text(line), soft_wrap=not live)
    return captured.get().rstrip()


def _table_grid(table: Table) -> RenderableType:
    grid = Grid(pad_edge=False)
    method, *others = table.head()
    grid.add_column(method)
    for name in others:
        grid.add_column(name, justify="right")
    group = None
    for line in table.lines():
        if group not in (None, line.group):
            grid.add_section()
        group = line.group
        cells = [
            Text("\n".join(lines), style=_STYLES.get(status or "", ""))
            for lines, status in zip(line.entries, line.statuses, strict=True)
        ]
        grid.add_row(*line.left, *cells)
    warnings = [Text(said, style="bold red") for said in table.warnings()]
    return Group(Text(table.title, style="bold"), *warnings, Text(table.stamp()), grid)
