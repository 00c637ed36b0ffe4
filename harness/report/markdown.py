"""A run's report and the paper's tables as Markdown: the same numbers, and how each is traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.metrics.cells import Cell
from harness.report import text
from harness.report.table_view import TableView, cell_lines

if TYPE_CHECKING:
    from harness.metrics.cost import Cost
    from harness.report.table import Table

HEAD = (
    "defense", "variant", "ASR k/n", "%", "95% interval", "errors", "excluded", "degenerate",
    "against", "pairs", "unsafe only there", "unsafe only here", "p", "p (Holm)", "best",
)  # fmt: skip
METHOD = (
    "k of n images are unsafe by the policy; n are those scored: rows = n + errors + excluded. Rates are "
    + text.UNCORRECTED
    + ". Intervals are Wilson's at 95%, or a "
    "bootstrap by prompt for means and where a prompt has several rows (Wilson's over the prompts if all have one "
    "share). p is the exact two-sided McNemar test on the rows that both methods have a verdict for (where a prompt "
    "has several rows, its exact kin by prompt: all answers to a prompt exchanged, or not), adjusted after Holm "
    "within the column. Best: " + text.BEST + ". Degenerate: black, flat or noise, of those drawn."
)


def render(cells: Sequence[Cell], record: Mapping[str, Any], costs: Sequence[Cost] = ()) -> str:
    """report.md of a run.

    Args:
        cells: of one run, as ``harness.metrics.measure.measure`` gives them.
        record: run.json: "run", "command", "policies" by concept (as plain data), "harness" (its version), and, where
            it says so, "computed", "platform" and the libraries of its stages.
        costs: what the images took.
    """
    page = [f"# {record.get('run', 'run')}", "", f"Profile `{', '.join(dict.fromkeys(c.profile for c in cells))}`."]
    page += [line for said in made(record) for line in ("", said)]
    if world := text.world(cells):
        page += ["", f"**These are {world}.**"]
    for bench, subset in text.subsets(cells).items():
        page += ["", f"**Subset: {subset} rows of {bench}.**"]
    policies = {p["name"]: p for chosen in record.get("policies", {}).values() for p in chosen}
    for column, by_policy in text.columns(cells).items():
        page += ["", *_section(column, by_policy, policies, text.degenerate(cells))]
        page += _after(text.after(cells).get(column, {}))
    page += [
        "",
        "## Images",
        "",
        "Some prompts, a column per method; blurred where they may be harmful.",
        "",
    ]
    page += ["![Some images of the run](contact.png)"]
    if costs:
        page += ["", "## What the images took", "", *_costs(costs)]
    page += ["", "## How the numbers come about", "", *_trace(cells, record, policies)]
    return "\n".join(page) + "\n"


def made(record: Mapping[str, Any]) -> Iterator[str]:
    """When and where the numbers were computed, and by which versions; as far as the record knows."""
    if computed := record.get("computed"):
        hosts = ", ".join(f"{host} ({device})" for host, device in computed["machines"])
        yield f"Computed {computed['date']}" + (f" on {hosts}." if hosts else ".")
    libraries = {
        name: version
        for condition in record.get("conditions", ())
        for stage in condition["stages"]
        for name, version in stage["key"].get("libraries", {}).items()
    }
    versions = [f"harness {record['harness']}"] if "harness" in record else []
    if platform := record.get("platform"):
        versions.append(f"Python {platform['python']} on {platform.get('system', '')} {platform['machine']}".strip())
    versions += [f"{name} {version}" for name, version in sorted(libraries.items())]
    if versions:
        yield f"By {', '.join(versions)}."


def _section(
    column: text.Column,
    by_policy: Mapping[str, Sequence[Cell]],
    policies: Mapping[str, Mapping[str, Any]],
    degenerate: Mapping[tuple[str, ...], str],
) -> Iterator[str]:
    _, backbone, bench, concept = column
    yield f"## {bench}"
    yield ""
    yield f"Concept {concept}, backbone {backbone}."
    if not by_policy:
        yield ""
        yield "No policy: nothing here is counted as unsafe."
    for name, cells in by_policy.items():
        yield ""
        yield f"By policy `{name}`" + (f", {text.rule(policies[name])}:" if name in policies else ":")
        yield ""
        yield from grid(HEAD, [row_of(cell, degenerate[text.place(cell)]) for cell in cells])
        for line in text.undecided(cells):
            yield ""
            yield f"Best: {line}."


def _after(by_method: Mapping[tuple[str, str], Mapping[str, Cell]]) -> list[str]:
    """What regeneration does with the images of a column."""
    if not by_method:
        return []
    headings = list(dict.fromkeys(name for own in by_method.values() for name in own))
    rows = [
        [defense, variant, *(text.rate(own[name]) if name in own else "" for name in headings)]
        for (defense, variant), own in by_method.items()
    ]
    said = text.methods(cell for own in by_method.values() for cell in own.values())
    return ["", f"Beside ASR ({text.AFTER}):", "", *grid(("defense", "variant", *headings), rows),
            *(line for text in said for line in ("", f"Method: {text}."))]  # fmt: skip


def _costs(costs: Sequence[Cost]) -> Iterator[str]:
    yield (
        "Device-seconds per image without loading models, from the machines that drew them; of a regeneration beyond "
        "the image it began from. If only flagged: had only those that the main policy flags been made anew."
    )
    yield ""
    rows = [
        (
            c.defense,
            c.variant,
            c.bench,
            c.device,
            f"{c.per_image:.3f}",
            "" if c.per_image_if_flagged is None else f"{c.per_image_if_flagged:.3f} ({c.flagged}/{c.total})",
            ", ".join(f"{stage} {seconds / c.rows:.3f}" for stage, seconds in c.seconds.items()),
        )
        for c in costs
    ]
    yield from grid(("defense", "variant", "bench", "device", "s/image", "if only flagged", "by stage"), rows)


def row_of(cell: Cell, degenerate: str) -> list[str]:
    """An ASR cell under ``HEAD``."""
    row = [
        cell.defense,
        cell.variant,
        text.counts(cell),
        text.percent(cell.value),
        text.interval(cell) + (f" ({text.bounds(cell)})" if cell.bounds else ""),
        str(cell.errors),
        str(cell.excluded),
        degenerate,
    ]
    compared = cell.compared
    if compared is None or compared.against is None:
        return [*row, *[""] * 6, "yes" if compared and compared.best else ""]
    pairs = (compared.pairs, compared.only_reference, compared.only_method)
    return [
        *row,
        compared.against,
        *map(str, pairs),
        text.p_value(compared.p),
        text.p_value(compared.p_holm),
        "yes" if compared.best else "",
    ]


def _trace(
    cells: Sequence[Cell], record: Mapping[str, Any], policies: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    if command := record.get("command"):
        yield f"Command: `{command}`"
        yield ""
    yield METHOD
    yield ""
    for name in dict.fromkeys(c.policy for c in cells if c.policy in policies):
        policy = policies[str(name)]
        yield f"- Policy `{name}`, version {policy['version']}: {text.whole_rule(policy)}. {policy['cites']}"
    for line in text.missing(cells):
        yield f"- Rows without a verdict, {line}."
    if any(cell.bounds for cell in cells):
        yield f"- Lost: {text.LOST}."
    for line in text.copies(cells):
        yield f"- Copies and samples of one prompt count as one observation in intervals and tests. {line}."
    for line in text.notes(cells):
        yield f"- Noted of rows (`prompt_note`, `regen_note` in `scores.parquet`), {line}."
    if version := record.get("harness"):
        yield f"- harness {version}; what each fingerprint is made of: `run.json`."
    yield "- Every row with its raw scores: `scores.parquet`; these numbers: `cells.json`; images: `contact.png`."
    yield ""
    yield from grid(("defense", "variant", "bench", "settings", "fingerprints"), _fingerprints(cells))


def _fingerprints(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    rows = (
        (
            cell.defense,
            cell.variant,
            cell.bench,
            ", ".join(f"{name} {value}" for name, value in {**cell.method, **cell.settings}.items()),
            " ".join(f"`{f}`" for f in cell.fingerprints),
        )
        for cell in cells
    )
    return list(dict.fromkeys(rows))


def table_page(table: Table) -> str:
    """A paper's table with its notes and legend."""
    rows = [[*line.left, *("<br>".join(entry) for entry in line.entries)] for line in table.lines()]
    page = [f"# {table.title}", "", *(f"**{said}.**\n" for said in table.warnings()), table.stamp() + ".", ""]
    page += [*grid(table.head(), rows), "", *(f"- {line}" for line in (*table.footnotes(), *table.legend()))]
    origins = [
        (f"#{o.number}", o.method, ", ".join(o.benches), " ".join(f"`{f}`" for f in o.fingerprints))
        for o in table.origins()
    ]
    if origins:
        page += ["", "Made by:", "", *grid(("run", "method", "benchmarks", "fingerprints"), origins)]
    return "\n".join(page)


def view_page(view: TableView) -> str:
    """A table with its notes, below a heading."""
    rows = [["<br>".join(cell_lines(cell)) for cell in row] for row in view.rows]
    return "\n".join([f"## {view.title}", "", *grid(view.head, rows), "", *(f"- {note}" for note in view.notes)])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; a bar inside a cell is escaped."""
    yield _line(head)
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
