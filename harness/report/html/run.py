"""A run's report as one HTML file: tables, browser of rows, threshold curves, costs, and where each number is from.

The page holds no prompt, no caption and no name of a user's file unless asked to; images that are not of the shapes
world only as their blur.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.cards.policy import PolicyCard
from harness.metrics.cells import ASR, DEGENERATE, Cell, Policies, ResultGroup, result_groups
from harness.metrics.corrections import Correction
from harness.metrics.cost import Cost
from harness.report import contact_sheet, corrections, curve, markdown, text
from harness.report.html import curves, images, rows
from harness.report.html.page import render
from harness.report.table_view import TableView

_CELL = (
    "defense", "variant", "bench", "metric", "by", "reference", "k/n or n", "value", "95% interval", "errors",
    "excluded", "subset", "settings", "stages",
)  # fmt: skip
_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """What a page is made of: all that a complete run knows."""

    record: Mapping[str, Any]  # run.json
    cells: Sequence[Cell]
    costs: Sequence[Cost]
    policies: Policies  # by concept, the main one first
    scores: pa.Table  # schema SCORE, all conditions
    image_shards: Sequence[Path]  # of all conditions; none where the store is not at hand
    published: Sequence[PolicyCard] = ()  # policies of other papers, whose cut-offs are marked on the curves
    corrections: Sequence[Correction] = ()  # what people's labels make of the rates
    with_prompts: bool = False  # prompts, captions and names of imported files too


def copy_images(run: RunPage, folder: Path) -> int:
    """Copy the images that the page shows blurred, as they are, into a private folder; returns how many."""
    own = list(result_groups(run.scores))
    return images.copy(own, images.choose(own, run.policies), run.image_shards, folder)


def page(run: RunPage) -> str:
    """The whole file."""
    own = list(result_groups(run.scores))
    packed = rows.pack(own, run.policies, named=run.with_prompts)
    chosen = images.choose(own, run.policies)
    revealed = contact_sheet.shapes_only(run.scores)
    embedded = images.embed(own, chosen, run.image_shards, revealed)
    drawn = curve.by_main_policies(run.scores, run.policies, run.published)
    return render(
        "run.html.j2",
        title=run.record.get("run", "run"),
        command=run.record.get("command") or "",
        made=list(markdown.made(run.record)),
        profile=", ".join(dict.fromkeys(c.profile for c in run.cells)),
        world=text.world(run.cells),
        subsets=text.subsets(run.cells),
        results=list(_results(run)),
        corrected=corrections.text(run.corrections) if run.corrections else "",
        drawings=curves.drawings(drawn),
        cut_offs=_cut_offs(drawn, run),
        missing=text.missing(run.cells),
        copies=text.copies(run.cells),
        notes=text.notes(run.cells),
        outcomes=_outcomes(run),
        costs=list(_costs(run.costs)),
        cells=_cells(run.cells),
        policies=_policies(run),
        how=markdown.METHOD,
        about={
            **packed.about,
            **_islands(own, run),
            "revealed": revealed,
            "files": {} if revealed else images.names(own, embedded),
        },
        data=packed.data,
        left_out=packed.left_out,
        images=embedded,
        revealed=revealed,
        texts=rows.texts(own) if run.with_prompts else "",
    )


def _islands(own: Sequence[ResultGroup], run: RunPage) -> dict[str, Any]:
    """What the page's script needs beside the rows: methods by part, tests of pairs, columns shown at first."""
    compared = [
        {
            "bench": c.bench, "policy": c.policy, "first": text.joined(*c.compared.against.split("/", 1)),
            "second": text.method(c), "p": text.p_value(c.compared.p), "p_holm": text.p_value(c.compared.p_holm),
        }
        for c in run.cells if c.metric == ASR and c.compared is not None and c.compared.against is not None
    ]  # fmt: skip
    asked = {q.name: q.rule.any_of for chosen in run.policies.values() for q in chosen if q.unit == "image"}
    scores = {name: columns[0] if len(columns) == 1 else rows.highest(name) for name, columns in asked.items()}
    main = [chosen[0].name for chosen in run.policies.values() if chosen]
    return {
        "methods": [text.joined(part.defense, part.variant) for part in own],
        "compared": compared,
        "scores": scores,
        "first": list(dict.fromkeys(scores[name] for name in main if name in scores)),
    }


def _results(run: RunPage) -> Iterator[tuple[str, list[TableView]]]:
    """By benchmark: ASR by each policy, and what stands beside it."""
    policies = {p["name"]: p for chosen in run.record.get("policies", {}).values() for p in chosen}
    degenerate, after, subsets = text.degenerate(run.cells), text.after(run.cells), text.subsets(run.cells)
    for column, by_policy in text.columns(run.cells).items():
        _, backbone, bench, concept = column
        about = f"{bench}: concept {concept}, backbone {backbone}"
        about += f", subset {subsets[bench]}" if bench in subsets else ""
        about += "" if by_policy else "; no policy, so nothing here is counted as unsafe"
        grids = []
        for name, own in by_policy.items():
            said = f": {text.rule(policies[name])}" if name in policies else ""
            table = [markdown.row_of(cell, degenerate[text.place(cell)]) for cell in own]
            notes = [f"Best: {line}." for line in text.undecided(own)]
            notes += [f"Lost: {text.LOST}."] if any(cell.bounds for cell in own) else []
            grids.append(TableView(f"ASR by {name}{said}", markdown.HEAD, table, notes, left=2))
        if column in after:
            headings = list(dict.fromkeys(name for own in after[column].values() for name in own))
            lines = [[*method, *(text.rate(own[n]) if n in own else "" for n in headings)]
                     for method, own in after[column].items()]  # fmt: skip
            notes = [text.AFTER, *(f"Method: {line}" for line in text.methods(run.cells))]
            grids.append(TableView("Beside ASR", ("defense", "variant", *headings), lines, notes, left=2))
        yield about, grids


def _cut_offs(drawn: Sequence[curve.Curve], run: RunPage) -> list[TableView]:
    """Each paper's label set and cut-off, and what it counts of every method's images."""
    if not drawn:
        return []
    cards = {p.name: p for p in (*run.published, *(q for chosen in run.policies.values() for q in chosen))}
    counted = []
    for one in drawn:
        for mark in one.marks:
            point = mark.point
            ends = "" if point.low is None or point.high is None else f"[{100 * point.low:.1f}, {100 * point.high:.1f}]"
            counted.append([
                mark.policy, one.group.bench, text.joined(one.group.defense, one.group.variant), f"{point.k}/{point.n}",
                text.percent(point.value), ends, f"{mark.op} {point.threshold:g}",
                "on the curve" if mark.on_curve else "asks other columns",
            ])  # fmt: skip
    names = dict.fromkeys(mark.policy for one in drawn for mark in one.marks)
    sets = [[name, _bare(cards[name]), cards[name].cites] for name in names]
    head = ("policy", "bench", "method", "k/n", "%", "95% interval", "cut-off", "place")
    return [
        TableView(
            "Label set and cut-off of each published policy over the same scores", ("policy", "rule", "cites"), sets
        ),
        TableView("What each counts on these images", head, counted),
    ]


def _bare(policy: PolicyCard) -> str:
    """A policy's rule with every column, as plain text."""
    return text.whole_rule(policy.model_dump()).replace("`", "")


def _outcomes(run: RunPage) -> TableView:
    """Per method and benchmark: degenerate images, errors, exclusions, each with its reasons."""
    degenerate = text.degenerate(run.cells)
    judged = {text.place(c): c for c in run.cells if c.main and c.metric == ASR}
    lines = []
    for cell in run.cells:
        if cell.metric == DEGENERATE:
            main = judged.get(text.place(cell), cell)
            lines.append([
                cell.defense, cell.variant, cell.bench, degenerate[text.place(cell)], text.percent(cell.value),
                text.interval(cell), str(main.errors), str(main.excluded), _counted(main.reasons), _counted(cell.notes),
            ])  # fmt: skip
    head = (
        "defense",
        "variant",
        "bench",
        "degenerate k/n",
        "%",
        "95% interval",
        "errors",
        "excluded",
        "reasons",
        "notes",
    )
    return TableView(
        "Degenerate images (black, flat or noise, of those drawn), errors and exclusions", head, lines, left=3
    )


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in reasons.items())


def _costs(costs: Sequence[Cost]) -> Iterator[TableView]:
    """Device-seconds and device-hours, by method and by stage."""
    if not costs:
        return
    lines, stages = [], []
    for c in costs:
        total = sum(c.seconds.values())
        flagged = "" if c.per_image_if_flagged is None else f"{c.per_image_if_flagged:.3f} ({c.flagged}/{c.total})"
        place = [c.defense, c.variant, c.bench]
        lines.append([*place, c.device, str(c.rows), f"{c.per_image:.3f}", flagged, *_hours(c.device, total)])
        stages += [[*place, stage, c.device, f"{s:.1f}", f"{s / c.rows:.3f}", *_hours(c.device, s)]
                   for stage, s in c.seconds.items()]  # fmt: skip
    left = ("defense", "variant", "bench")
    yield TableView(
        "What the images took: device-seconds without loading models; of a regeneration beyond the image it began from",
        (*left, "device", "images", "s/image", "s/image if only flagged", "GPU-hours", "CPU-hours"), lines, left=3,
    )  # fmt: skip
    yield TableView(
        "By stage", (*left, "stage", "device", "seconds", "s/image", "GPU-hours", "CPU-hours"), stages, left=4
    )


def _hours(device: str, seconds: float) -> tuple[str, str]:
    """Under GPU-hours or under CPU-hours; of shards drawn on either, under both, since nobody noted which."""
    hours = f"{seconds / _HOUR:.4f}"
    return hours if "cuda" in device else "", hours if "cpu" in device else ""


def _cells(cells: Sequence[Cell]) -> list[TableView]:
    """Every cell with what it is made of, and the stages with their fingerprints, which many cells share."""
    chains = {chain: f"#{i}" for i, chain in enumerate(dict.fromkeys(c.fingerprints for c in cells), 1)}
    lines = [
        [
            c.defense, c.variant, c.bench, c.metric, c.policy or c.scorer or "", c.reference or "",
            text.counts(c) if c.k is not None else str(c.n), "" if c.value is None else f"{c.value:.4f}",
            "" if c.low is None or c.high is None else f"[{c.low:.4f}, {c.high:.4f}]", str(c.errors), str(c.excluded),
            c.subset or "", ", ".join(f"{k} {v}" for k, v in {**c.method, **c.settings}.items()),
            chains[c.fingerprints],
        ]
        for c in cells
    ]  # fmt: skip
    stages = [[number, " ".join(chain)] for chain, number in chains.items()]
    return [
        TableView("Every cell", _CELL, lines, left=3),
        TableView("Stages of the cells, each with its fingerprint", ("stages", "fingerprints"), stages,
             code=frozenset({"fingerprints"})),
    ]  # fmt: skip


def _policies(run: RunPage) -> list[str]:
    """Each policy that something was counted by, whole."""
    used = {c.policy for c in run.cells}
    cards = {p.name: p for chosen in run.policies.values() for p in chosen if p.name in used}
    return [f"{p.name}, version {p.version}: {_bare(p)}. {p.cites}" for p in cards.values()]
