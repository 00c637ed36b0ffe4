"""``harness fetch``: get benchmark files and weights that the package does not hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_card
from harness.cli import options

fetch = typer.Typer(no_args_is_help=True, help="Get benchmark files and weights that the package does not hold.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(fetch, name="fetch")


@fetch.command(
    "bench", epilog=options.examples("harness fetch bench ring-a-bell-violence-eta5-k77 --from Violence_eta_5_K_77.csv")
)
def bench(
    name: Annotated[str, typer.Argument(help="Benchmark; see `harness list datasets`.")],
    file: Annotated[
        Path | None,
        typer.Option("--from", help="Your own copy (CSV or JSON, gzip or not; Parquet), known by its sha256."),
    ] = None,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Fetch a benchmark from its card's source (HF_TOKEN for gated ones), or import your own copy."""
    from harness.data.fetch import fetch_bench

    fetched = fetch_bench(load_card(BenchmarkCard, name, card_roots(cards)), data, file, os.environ.get("HF_TOKEN"))
    if json:
        options.emit(
            {"path": str(fetched.path), "sha256": fetched.sha256, "rows": fetched.rows, "warning": fetched.warning}
        )
        return
    if fetched.warning:
        typer.echo(f"warning: {fetched.warning}", err=True)
    typer.echo(f"{name}: {fetched.rows} rows at {fetched.path} (sha256 {fetched.sha256[:16]})")


@fetch.command(
    "weights",
    epilog=options.examples(
        "harness fetch weights sd-1-4",
        "harness fetch weights paper",
        "harness fetch weights q16 --from prompts.p",
    ),
)
def weights(
    name: Annotated[str, typer.Argument(help="Backbone, judge, regenerator, scorer, or profile; see `harness list`.")],
    file: Annotated[
        Path | None,
        typer.Option("--from", help="Your own copy of the file that a scorer reads: Q16's prompts."),
    ] = None,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Fetch published weights at the revision that their card pins, into the Hugging Face cache.

    With --from, store the file that a scorer cannot fetch by itself; every profile that names none of its own takes it.
    """
    from harness.models import weights as published
    from harness.pipeline.prerequisites import find_weights

    if file is not None:
        _import(name, file, data, json)
        return
    fetched = []
    for wanted in find_weights(name, card_roots(cards)):
        path = published.fetch(wanted, os.environ.get("HF_TOKEN"))
        fetched.append({"name": wanted.name, "source": wanted.source, "revision": wanted.revision, "path": str(path)})
        if not json:
            typer.echo(f"{wanted.name}: {wanted.source} at {path} ({wanted.licence})")
    if json:
        options.emit({"weights": fetched})


def _import(stem: str, file: Path, data: Path, json: bool) -> None:
    """Store a scorer's file, and say where."""
    from harness.pipeline.scorer_files import import_file

    done = import_file(stem, file, data)
    if json:
        options.emit({"path": str(done.path), "sha256": done.sha256, "warning": done.warning})
        return
    if done.warning:
        typer.echo(f"warning: {done.warning}", err=True)
    typer.echo(f"{stem}: {done.path} (sha256 {done.sha256[:16]})")
