"""``harness report``: a table of the paper from all runs of a folder, or one run's ASR against threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cards.base import card_roots
from harness.cards.load import card_names, load_card, load_cards
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.report import ReportCard
from harness.cli import options
from harness.errors import UserError, nearest
from harness.store.files import require_writable, write_atomically

FORMATS = ("terminal", "md", "latex", "csv", "json", "html")
SAFEREDIR = "saferedir"


Names = Annotated[list[str] | None, typer.Argument(help="Of saferedir: folders of runs, or their names.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help=f"One of: {', '.join(FORMATS)}. Default: what --to ends with, else terminal."),
]
To = Annotated[
    Path | None, typer.Option("--to", help="Write to this file instead of standard output; with --curve, folder.")
]
WithPrompts = Annotated[
    bool, typer.Option("--with-prompts", help="Of a run as html: prompts, captions and names of files too.")
]
Plots = Annotated[Path | None, typer.Option("--plots", help="Of a run: write its figures (SVG, PDF) into this folder.")]
Reveal = Annotated[
    Path | None,
    typer.Option(
        "--reveal",
        help="Of a run: copy the images that its html shows blurred, as they are, from the store into this private "
        "folder; the page shows them where you choose its files.",
    ),
]
Curve = Annotated[
    bool, typer.Option("--curve", help="ASR of a run against the threshold: CSV, JSON, PNG. Loads no model.")
]
TwoPolicies = Annotated[
    str | None,
    typer.Option(
        "--disagreement", help="Where two policies of a run disagree, per score band: resafe-nudity-0.45,opennsfw-0.8."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("report", epilog=options.examples("harness report table1 --profile shapes --format md"))(report)


def report(
    name: Annotated[
        str, typer.Argument(help="Table, see `harness list reports`; a run's folder or its name; or saferedir.")
    ],
    runs: Names = None,
    profile: options.Profile = "paper",
    out: options.Out = options.OUT,
    form: Format = None,
    to: To = None,
    with_prompts: WithPrompts = False,
    figures: Plots = None,
    reveal: Reveal = None,
    store: options.StoreDir = options.STORE,
    curve: Curve = False,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Of a table: count the stored scores anew by this one. With --curve: whose threshold moves.",
        ),
    ] = None,
    disagreement: TwoPolicies = None,
    cards: options.Cards = None,
    as_json: options.Json = False,
) -> None:
    """Print a table in the paper's layout from every run under --out: k/n, interval, and the paper's value beside.

    Cells that no run gives say so, and how to get them. `harness report RUN` prints one run's own numbers again.
    `harness report saferedir RUN...` prints FSR, CSDR and PDR of SafeRedir's protocol. With --curve, ASR of one run at
    every threshold, from its stored scores, with the point of each published policy over the same scorer.
    The format html is one file that works offline: of a run with its rows and, from the store, some of its images, all
    but those of the shapes world blurred; without prompts and captions unless asked.
    """
    if to is not None:
        require_writable(to, "--to", folder=curve)
    folder = _folder_of(name, out)
    if curve:
        _curve(folder, policy, to, cards, as_json)
    elif disagreement is not None:
        _disagreement(folder, options.split(disagreement), to, cards, as_json)
    elif figures is not None:
        _figures(folder, figures, cards, as_json)
    elif reveal is not None:
        _reveal(folder, reveal, store)
    else:
        form = _format(form, to, as_json)
        is_run = name not in card_names(ReportCard, card_roots(cards)) and (folder.is_dir() or "/" in name)
        if policy is not None and (name == SAFEREDIR or is_run):
            raise UserError("--policy goes with a table of the paper, or with --curve")
        if name == SAFEREDIR:
            text = _saferedir(runs or [], out, cards, form)
        elif runs:
            raise UserError(f"report {name!r} reads every run under --out; folders of runs go with {SAFEREDIR!r}")
        elif is_run:
            text = _run(folder, form, store, cards, with_prompts)
        else:
            if with_prompts:
                raise UserError("--with-prompts goes with a run; a table of the paper has no prompts")
            text = _table(name, profile, out, form, cards, policy)
        print_text(text, to)


def _table(name: str, profile: str, out: Path, form: str, cards: Path | None, policy: str | None) -> str:
    """A table of the paper."""
    from harness.report import table
    from harness.report.render import render

    _check(form)
    card = load_card(ReportCard, name, card_roots(cards))
    load_card(ProfileCard, profile, card_roots(cards))
    chosen = None if policy is None else load_card(PolicyCard, policy, card_roots(cards))
    return render(table.assemble(card, out, profile, chosen), form)


def check_format(form: str | None, to: Path | None, as_json: bool) -> str:
    """The format of a table.

    Raises:
        UserError: there is none of that name.
    """
    chosen = _format(form, to, as_json)
    _check(chosen)
    return chosen


def _check(form: str) -> None:
    if form not in FORMATS:
        raise UserError(f"--format {form!r}{nearest(form, FORMATS)} (there are: {', '.join(FORMATS)})")


def _format(form: str | None, to: Path | None, as_json: bool) -> str:
    """What was asked for, or what the file's name ends with."""
    from harness.report.render import format_of

    if as_json:
        return "json"
    return form or (format_of(to) if to is not None else None) or "terminal"


def _run(folder: Path, form: str, store: Path, cards: Path | None, with_prompts: bool) -> str:
    """One run's numbers again."""
    from harness.report.html.run import page
    from harness.report.stored_run import read_run, render_run, run_page

    _check(form)
    if form == "html":
        return page(run_page(read_run(folder), store, load_cards(PolicyCard, card_roots(cards)), with_prompts)).rstrip()
    if with_prompts:
        raise UserError(f"--with-prompts goes with --format html; --format {form} never has prompts")
    return render_run(read_run(folder), form)


def _folder_of(run: str, out: Path) -> Path:
    """The folder of a run that is named by its path, or by its name below ``out``."""
    return Path(run) if Path(run).is_dir() or "/" in run else out / run


def print_text(text: str, to: Path | None) -> None:
    """To standard output, or to a file."""
    if to is None:
        typer.echo(text)
    else:
        write_atomically(to, (text + "\n").encode())
        typer.echo(f"{to}", err=True)


def _saferedir(names: list[str], out: Path, cards: Path | None, form: str) -> str:
    """SafeRedir's tables of runs, each a folder or a name below ``out``."""
    from harness.report import saferedir
    from harness.report.stored_run import read_record

    if not names:
        raise UserError(f"report {SAFEREDIR!r} needs the folders of runs: harness report {SAFEREDIR} RUN...")
    folders = [_folder_of(name, out) for name in names]
    for folder in folders:
        read_record(folder)  # a run that is not there is refused with those that are
    wanted = [*(task.policy for task in saferedir.TASKS), saferedir.PERSON]
    policies = {name: load_card(PolicyCard, name, card_roots(cards)) for name in wanted}
    return saferedir.render(saferedir.assemble(folders, policies), form)


def _reveal(run: Path, folder: Path, store: Path) -> None:
    """Copy a run's images into a private folder."""
    from harness.report.html.run import copy_images
    from harness.report.stored_run import read_run, run_page

    try:
        count = copy_images(run_page(read_run(run), store, ()), folder)
    except OSError as error:
        raise UserError(f"--reveal {folder}: cannot be written: {error.strerror}") from None
    if not count:
        raise UserError(f"no image of {run.name} is in the store {store}: name its store with --store")
    typer.echo(f"{count} images, not blurred, in {folder}: remove it when you have seen them", err=True)


def _figures(run: Path, folder: Path, cards: Path | None, as_json: bool) -> None:
    """Write a run's figures into a folder."""
    from harness.report import run_plots
    from harness.report.stored_run import read_run
    from harness.store.shards import read

    stored, published = read_run(run), load_cards(PolicyCard, card_roots(cards))
    scores = read(run / "scores.parquet")
    paths = run_plots.write(folder, stored.cells, stored.costs, scores, stored.policies, published)
    if as_json:
        options.emit({"run": run.name, "paths": list(map(str, paths))})
        return
    for path in paths:
        typer.echo(str(path))


def _curve(run: Path, policy: str | None, to: Path | None, cards: Path | None, as_json: bool) -> None:
    """Write a run's curves beside its report, or to a folder."""
    from harness.cards.policy import PolicyCard
    from harness.report import curve, plots
    from harness.report.stored_run import read_record
    from harness.store.shards import read

    record, where = read_record(run), card_roots(cards)
    chosen = {c: load_card(PolicyCard, policy or used[0]["name"], where) for c, used in record["policies"].items()}
    known = [card for card in load_cards(PolicyCard, where) if isinstance(card, PolicyCard)]
    curves = curve.curves(read(run / "scores.parquet"), chosen, known)
    names = "_".join(dict.fromkeys(card.name for card in chosen.values()))
    paths = plots.write_curves(to or run, f"curve_{names}", curves)
    if as_json:
        options.emit(
            {"run": run.name, "policies": {c: p.name for c, p in chosen.items()}, "paths": list(map(str, paths))}
        )
        return
    for path in paths:
        typer.echo(str(path))


def _disagreement(run: Path, named: tuple[str, ...], to: Path | None, cards: Path | None, as_json: bool) -> None:
    """Print where two policies of a run's stored scores disagree."""
    from harness.report import disagreement
    from harness.report.stored_run import read_record
    from harness.store.shards import read

    if len(named) != 2:
        raise UserError(f"--disagreement {','.join(named)!r}: takes two policies; see `harness list policies`")
    read_record(run)  # a run that is not there is refused with those that are
    first, second = (load_card(PolicyCard, name, card_roots(cards)) for name in named)
    crossed = disagreement.assemble(read(run / "scores.parquet"), first, second)
    if not crossed:
        raise UserError(f"{run}: no row has a verdict by both {first.name} and {second.name}")
    if as_json:
        options.emit({"policies": named, "disagreement": disagreement.plain(crossed)})
    else:
        print_text(disagreement.markdown(crossed, first, second), to)
