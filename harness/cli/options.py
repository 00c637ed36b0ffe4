"""Options that several commands share, and the folders they stand for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.pipeline.request import Places

Profile = Annotated[
    str,
    typer.Option(
        "--profile", envvar="HARNESS_PROFILE", help="Which models play which role: paper, or shapes (embedded, CPU)."
    ),
]
Cards = Annotated[
    Path | None, typer.Option("--cards", help="Folder with cards of your own, looked up before the shipped ones.")
]
StoreDir = Annotated[
    Path,
    typer.Option("--store", envvar="HARNESS_STORE", help="Folder of shards; what is there is never computed again."),
]
Out = Annotated[
    Path,
    typer.Option("--out", envvar="HARNESS_OUT", help="Folder of runs: scores, cells, report, page, contact sheet."),
]
Data = Annotated[Path, typer.Option("--data", envvar="HARNESS_DATA", help="Folder of fetched benchmark files.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output; everything else on standard error.")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="What draws, instead of the profile's: a card, or the path of a diffusers folder or of one .safetensors "
        "or .ckpt file; sampled otherwise as sd-1-4:steps=25:guidance=5.",
    ),
]

LARGEST_SEED = 2**63 - 1  # half of what a row can hold: a prompt's further samples take the seeds that follow
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=LARGEST_SEED,
        help="This seed for every row, instead of its own: the benchmark's, or 42 for given images.",
    ),
]

STORE = Path(".harness/store")
DATA = Path(".harness/data")
OUT = Path("runs")


def places(store: Path, out: Path, data: Path, cards: Path | None) -> Places:
    """The folders as the run wants them."""
    from harness.pipeline.request import Places

    return Places(store=store, out=out, data=data, cards=cards)


def examples(*commands: str) -> str:
    """The end of a command's help: commands to copy, none of them broken, however narrow the terminal."""
    return "\b\n" + "\n".join(["Examples:" if len(commands) > 1 else "Example:", *(f"  {c}" for c in commands)])


def split(text: str) -> tuple[str, ...]:
    """``"a, b, a"`` as ("a", "b")."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def emit(value: Any) -> None:
    """One JSON object on standard output."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # what cannot be written as it is would be lost: in JSON everything can be escaped
        text = json.dumps(value)
    typer.echo(text)
