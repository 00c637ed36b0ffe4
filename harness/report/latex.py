r"""A paper's table and a run's numbers in LaTeX: fragments to ``\input``, with booktabs' rules.

Everything that is shown is escaped; what a reader of the paper need not see (commands, fingerprints) stands in comments
above the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.metrics.cells import Cell
from harness.report import text
from harness.report.table_view import TableView, cell_lines

if TYPE_CHECKING:
    from harness.report.table import Table

_SPACE = re.compile(r"\s+")
PACKAGES = ("amssymb", "booktabs", "graphicx")
_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # a line that begins with one of them would be an argument of the \\ before it
    "✓": r"$\checkmark$", "✗": r"$\times$", "—": "---", "–": "--", "±": r"$\pm$", "·": r"$\cdot$", "…": r"\ldots{}",
    "α": r"$\alpha$", "η": r"$\eta$", "λ": r"$\lambda$", "≥": r"$\geq$", "≤": r"$\leq$", "’": "'",
}  # fmt: skip


def escape(plain: str) -> str:
    """``plain`` as LaTeX shows it, sign for sign; white space becomes single spaces."""
    joined = _SPACE.sub(" ", plain)
    dashes = zip(" " + joined, joined, strict=False)  # two hyphens in a row would become a dash
    return "".join("{}-" if sign == before == "-" else _SIGNS.get(sign, sign) for before, sign in dashes)


def table_fragment(table: Table) -> str:
    """A paper's table with its notes and legend."""
    labels = table.head()
    ticks = len(labels) - 1 - len(table.card.columns)
    caption = " ".join([f"{table.title}.", *(f"{said}." for said in (*table.warnings(), table.stamp()))])
    sources = [f"#{number} {run}: {table.commands.get(run, '')}" for run, number in table.numbers().items()]
    sources += map(str, table.origins())
    return "\n".join([
        *_comments(sources),
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{table.card.name}}}",
        r"\resizebox{\textwidth}{!}{%",
        *_tabular("l" + "c" * ticks + "r" * len(table.card.columns), labels, _lines(table)),
        "}",
        *_remarks([*table.footnotes(), *table.legend()]),
        r"\end{table*}",
    ])  # fmt: skip


def view_fragment(view: TableView) -> str:
    """A table with its notes; columns that name a row stand left."""
    rows = [_row([_stacked(cell_lines(cell)) for cell in row]) for row in view.rows]
    return "\n".join([
        *_comments([]),
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(view.title)}.}}",
        *_tabular("l" * view.left + "r" * (len(view.head) - view.left), view.head, rows),
        *_remarks(view.notes),
        r"\end{table*}",
    ])  # fmt: skip


def _lines(table: Table) -> Iterator[str]:
    group = None
    for line in table.lines():
        if group not in (None, line.group):
            yield r"\midrule"
        group = line.group
        yield _row([*map(escape, line.left), *map(_stacked, line.entries)])


def run_fragment(all_cells: Sequence[Cell], record: Mapping[str, Any]) -> str:
    """A run's attack success rates, a table per benchmark and policy."""
    parts = [*_comments([f"{record.get('run', 'run')}: {record.get('command')}"])]
    for (profile, backbone, bench, concept), by_policy in text.columns(all_cells).items():
        for policy, cells in by_policy.items():
            caption = f"{bench} ({concept}), profile {profile}, backbone {backbone}: ASR by {policy}."
            subset = text.subsets(cells).get(bench)
            caption += f" Subset: {subset} rows." if subset else ""
            world = text.world(cells)
            caption += f" These are {world}." if world else ""
            parts += [
                *_comments([f"{text.method(c)}: {' '.join(c.fingerprints)}" for c in cells]),
                r"\begin{table}[t]",
                r"\centering",
                rf"\caption{{{escape(caption)}}}",
                *_tabular("lrrrrr", _RUN_HEAD, [_row(map(_stacked, _run_row(c))) for c in cells]),
                *_remarks([f"rates are {text.UNCORRECTED}", *(f"missing: {said}" for said in text.missing(cells))]),
                r"\end{table}",
            ]
    return "\n".join(parts)


_RUN_HEAD = ("method", "ASR k/n", "%", "95% interval", "errors", "excluded")


def _run_row(cell: Cell) -> list[list[str]]:
    lost = [text.bounds(cell)] if cell.bounds else []
    shown = (text.counts(cell), text.percent(cell.value), text.interval(cell), str(cell.errors), str(cell.excluded))
    return [[text.method(cell)], [shown[0], *lost], *([one] for one in shown[1:])]


def _tabular(columns: str, head: Sequence[str], rows: Iterator[str] | Sequence[str]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(map(escape, head)),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _row(cells: Iterator[str] | Sequence[str] | map[str]) -> str:
    return " & ".join(cells) + r" \\"


def _stacked(lines: Sequence[str]) -> str:
    """Lines of one cell above each other."""
    if len(lines) < 2:
        return "".join(map(escape, lines))
    return r"\begin{tabular}[t]{@{}r@{}}" + r" \\ ".join(map(escape, lines)) + r"\end{tabular}"


def _remarks(lines: Sequence[str]) -> list[str]:
    return [r"\par\medskip\raggedright\footnotesize", *(escape(line) + r"\par" for line in lines)]


def _comments(lines: Sequence[str]) -> list[str]:
    needed = f"needs \\usepackage{{{','.join(PACKAGES)}}}"
    return ["% " + _SPACE.sub(" ", line) for line in (needed, *lines)]
