"""The plan as a table: conditions, stages, phases, and what they will take."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN = 140  # characters a line where nobody looks at it live


def show(summary: dict[str, Any]) -> None:
    """The plan of a run as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _PLAIN)
    title = f"{summary['run']}  (profile {summary['profile']}, backbone {summary['backbone']})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("defense", "bench", "stage", "of", "fingerprint", "shards to do", "rows to do"):
        table.add_column(name, justify="right" if name.endswith("do") else "left")
    for s in summary["stages"]:
        to_do = f"{s['missing_shards']} of {s['shards']}"
        table.add_row(s["defense"], s["bench"], s["stage"], s["of"], s["fingerprint"], to_do, str(s["missing_rows"]))
    console.print(table)
    for number, phase in enumerate(summary["phases"], 1):
        groups = " | ".join(" -> ".join(s["stages"]) + (f" ({s['gpu']:g} of a GPU)" if s["gpu"] else "") for s in phase)
        console.print(f"phase {number}: {groups}", soft_wrap=True)
    for line in build_lines(summary["builds"]):
        console.print(f"build {line}", soft_wrap=True)
    memory = ", ".join(f"{stage} {gb:g} GB" for stage, gb in summary["memory_gb"].items())
    console.print(f"memory of one copy: {memory}", soft_wrap=True)
    for line in lacking_lines(summary):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(
        f"{summary['rows']} rows ({summary['excluded']} excluded by the guard), "
        f"{summary['images_to_draw']} images to draw: "
        f"about {summary['hours']} hours of drawing, {summary['disk_mb']} MB of disk",
        soft_wrap=True,
    )


def lacking_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the run lacks on this machine, and what the plan therefore does not know."""
    lines = [f"missing {line}" for line in summary.get("missing", ())]
    if unread := summary.get("unread"):
        lines.append(
            f"of {', '.join(unread)} only the number of rows is known: what the guard excludes, what --category leaves "
            "and what is in the store already will be once its prompts are here"
        )
    return lines


def show_power(comparisons: Sequence[Mapping[str, Any]]) -> None:
    """What the planned rows can tell apart, a line for each benchmark and kind of comparison."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _PLAIN)
    title = "smallest difference that can be shown (paired by prompt, exact McNemar, 5% after Holm; points of ASR)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    names = ("bench", "compared", "tests", "prompts", "flips", "as seen", "true, found in 4 of 5", "if 5% flip back")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for line in comparisons:
        points = [_points(line[name]) for name in ("smallest_seen", "smallest_true", "smallest_noisy")]
        counts = [str(line[name]) for name in ("tests", "n", "flips")]
        table.add_row(line["bench"], line["compared"], *counts, *points)
    console.print(table)


def _points(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f}"


def build_lines(builds: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each artefact: whether it is there, or what building it takes."""
    lines = []
    for b in builds:
        work = [f"{b['steps']} steps"] * bool(b["steps"]) + [f"{b['images']} images"] * bool(b["images"])
        takes = f"{', '.join(work)}, about {b['hours']:g} hours" if work else "seconds"
        room = f"{b['memory_gb']:g} GB of memory, at most {b['disk_mb']:g} MB of disk"
        lines.append(f"{b['defense']} ({b['concept']}): " + ("in the store" if b["built"] else f"{takes}, {room}"))
    return lines
