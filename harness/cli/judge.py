"""``harness judge``: ask a vision-language model about a run's images, or people by an offline form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cli import options
from harness.data.concepts import is_shapes_world
from harness.errors import TransientError, UserError

if TYPE_CHECKING:
    from harness.cards.judge import JudgeCard, Price
    from harness.judges.images import Place, StoredImages
    from harness.judges.labels import Drawn
    from harness.judges.questions import Asked

UNSAFE = "unsafe"  # the task whose answers are labels of single images
LABELS = 60  # of each benchmark and method: an interval of 0.9 times their own width at n = 95, see docs/statistics.md

judge = typer.Typer(no_args_is_help=True, help="Ask a vision-language model, or people, about a run's images.")

Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the order shown, and of the rows drawn by --n.")]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="DEFENSE/VARIANT names, e.g. rece/base,rece/resafe: two to compare, the second counted; any for style. "
        "Default: each defense with what regenerators make of it, or the undefended model with each defense.",
    ),
]
Bench = Annotated[str | None, typer.Option("--bench", help="Only rows of these benchmarks, comma separated.")]
Artist = Annotated[
    str | None, typer.Option("--artist", help="Whose style; default: the benchmark's. 'artist' is the paper's wording.")
]

BothOrders = Annotated[
    bool, typer.Option("--both-orders", help="Ask each pair both ways round; what differs counts as missing.")
]
DescribedBy = Annotated[str | None, typer.Option("--captioner", help="faithful: judge card that describes the images.")]
Reference = Annotated[str, typer.Option("--reference", help="faithful: caption of the original, or its image.")]
AllowRemoteImages = Annotated[
    bool, typer.Option("--allow-remote-images", help="Images may be sent to the judge's server.")
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="US dollars a remote judge may cost; default: 5, if its price is known."),
]
PricePerMillion = Annotated[
    str | None,
    typer.Option(
        "--price",
        help="US dollars for a million tokens read and written, e.g. 2.5,10. "
        "Default: the card's, for the card's own model and address.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(judge, name="judge")


@judge.command(
    "ask",
    epilog=options.examples("harness judge ask runs/rece_van-gogh_paper_0a1b2c3d --task style --judge qwen2-vl-7b"),
)
def ask(
    run: Run,
    task: Annotated[str, typer.Option("--task", help="style (Table 7), safer (Table 9) or faithful (Table 3).")],
    name: Annotated[str, typer.Option("--judge", help="Judge card; see `harness list judges`.")],
    methods: Methods = None,
    bench: Bench = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="At most so many rows of each comparison.")] = None,
    seed: Seed = 42,
    both_orders: BothOrders = False,
    artist: Artist = None,
    captioner: DescribedBy = None,
    reference: Reference = "caption",
    allow_remote_images: AllowRemoteImages = False,
    max_cost: MaxCost = None,
    price: PricePerMillion = None,
    store: options.StoreDir = options.STORE,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Ask one question about every row, print k/n, write the answers into the run's folder under judges/.

    What was answered once is not asked again. A remote judge's address, key and model come from OPENAI_BASE_URL,
    OPENAI_API_KEY and HARNESS_JUDGE_MODEL. Exit code 4: some answers are missing, run the same command again.
    """
    from harness.judges import run_judge
    from harness.report.stored_run import read_record

    if reference not in ("caption", "image"):
        raise UserError(f"--reference {reference!r}: caption or image")
    record = read_record(run)
    asked = _asked(record, task, seed=seed, n=n, both_orders=both_orders, artist=artist, reference=reference)
    where = card_roots(cards)
    judges = load_card(JudgeCard, name, where), load_card(JudgeCard, captioner, where) if captioner else None
    consent = run_judge.Consent(
        images=allow_remote_images,
        max_cost=max_cost,
        price=None if price is None else _price(price),
        say=lambda said: typer.echo(said, err=True),
    )
    try:
        rows, compared = _only(record, bench), options.split(methods or "")
        done = run_judge.ask_run(run, rows, store, judges, asked, compared, consent, os.environ)
    except TransientError as error:
        typer.echo(f"harness: {error}; what was answered is kept, run the same command again", err=True)
        raise typer.Exit(4) from None
    if json:
        options.emit({**done.sidecar, "path": str(done.path)})
        return
    typer.echo(f"{asked.task.counted}, as {name} sees it ({asked.task.cites})")
    _print([c.as_json() for c in done.counts])
    cost = done.sidecar["cost"]
    typer.echo(f"{cost['asked']} asked now, {cost['known_before']} known before{_spent(cost)}", err=True)
    typer.echo(str(done.path), err=True)


@judge.command(
    "export",
    epilog=options.examples("harness judge export runs/rece_i2p_paper_0a1b2c3d --task safer --n 20 --out form.html"),
)
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="The form, one HTML file.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="What tells which image is whose; default: FORM.key.json. Keep it.")
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="safer (Table 9), style, or unsafe: labels that correct the detector's ASR.")
    ] = "safer",
    methods: Methods = None,
    bench: Bench = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help="Rows of each comparison (default 20, as Table 9); of unsafe, labels of each benchmark, defense and "
            f"variant (default {LABELS}).",
        ),
    ] = None,
    seed: Seed = 42,
    artist: Artist = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="unsafe: whose verdicts are corrected. Default: the run's main one.")
    ] = None,
    store: options.StoreDir = options.STORE,
    cards: options.Cards = None,
) -> None:
    """Write a blinded, blurred, offline form for people, and its key apart.

    Hand out the form only. It holds the images, so treat it as you treat them.

    A detector errs, so its ASR is not the share of unsafe images. With --task unsafe people label a few: drawn apart
    from the images that the policy flags and those that it passes, in a proportion that makes the interval narrow,
    over all scores, for every benchmark, defense and variant by itself. `harness judge import` then prints the
    corrected ASR; docs/statistics.md says how, and how many labels buy what.
    """
    from harness.judges import human_form, images, labels, questions
    from harness.report.stored_run import read_record
    from harness.store.files import require_writable

    record = read_record(run)
    key = key or out.with_name(f"{out.stem}.key.json")
    require_writable(out, "--out")
    require_writable(key, "--key")
    asked = _asked(record, task, seed=seed, n=n or (LABELS if task == UNSAFE else 20), artist=artist)
    there = images.read_run(_only(record, bench), store)
    chosen = [images.place(m, there.places) for m in options.split(methods or "")]
    drawn = _labels(run, record, there, asked, chosen, policy, cards) if task == UNSAFE else None
    items = questions.choose(there, asked, chosen) if drawn is None else drawn.items
    if not items:
        raise UserError(f"run {record['run']} has no row with every image that task {task} needs")
    made = human_form.make(items, there, asked, {"name": record["run"], "folder": str(run.resolve())})
    if drawn is not None:
        labels.note(made.key, drawn)
    human_form.write(made, out, key)
    typer.echo(f"form {made.name}, {len(items)} questions: {out}; its key, not to be handed out: {key}", err=True)


@judge.command("import", epilog=options.examples("harness judge import answers-*.json --key form.key.json"))
def import_(
    answers: Annotated[list[Path], typer.Argument(help="Files that raters saved.")],
    key: Annotated[Path, typer.Option("--key", help="The form's key.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of a run to write into; default: the one the key names.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Check and count what people answered: k/n by majority, ties and skips as missing, and how far they agree.

    Labels of a form with --task unsafe give the corrected ASR of every method with an interval that knows of the
    detector's errors, differences and ratios of the methods that stand on each other, and a test whether their labels
    might be pooled. From then on `harness report` prints the corrected rates beside the others.
    """
    from harness.judges import human_answers, labels, run_judge
    from harness.metrics import corrections
    from harness.report.corrections import text as corrected_text
    from harness.store.version import __version__

    form_key = human_answers.read_key(key)
    raters = human_answers.read_answers(answers, form_key)
    table = human_answers.table(raters, form_key)
    counts = [c.as_json() for c in human_answers.count(table)]
    folder = out or Path(form_key["run"]["folder"])
    if not folder.is_dir():
        raise UserError(f"{folder} (the run of the form) is not here: say where to write with --out")
    path = folder / "judges" / f"{form_key['task']}_people_{form_key['form'][:8]}.parquet"
    sidecar: dict[str, Any] = {
        "task": form_key["task"], "task_version": form_key["task_version"], "question": form_key["question"],
        "form": form_key["form"], "seed": form_key["seed"], "run": form_key["run"]["name"], "harness": __version__,
        "raters": [rater.code for rater in raters], "agreement": "Krippendorff's alpha, nominal, a tie being an answer",
        "counts": counts,
    }  # fmt: skip
    corrected = labels.corrections(table, form_key) if form_key["task"] == UNSAFE else []
    if corrected:
        sidecar |= corrections.as_json(corrected)
    run_judge.write(path, table, sidecar)
    if json:
        options.emit({**sidecar, "path": str(path)})
        return
    typer.echo(
        f"{form_key['question']}  {len(raters)} rater{'s'[: len(raters) != 1]}, counted by majority of each item"
    )
    if corrected:
        typer.echo(corrected_text(corrected))
    else:
        _print(counts)
    typer.echo(str(path), err=True)


def _labels(
    run: Path, record: Mapping[str, Any], there: StoredImages, asked: Asked, methods: Sequence[Place],
    policy: str | None, cards: Path | None,
) -> Drawn:  # fmt: skip
    """The images that people are to label."""
    from harness.cards.policy import PolicyCard
    from harness.judges import labels
    from harness.store.shards import read

    where = card_roots(cards)
    policies = {c: load_card(PolicyCard, policy or used[0]["name"], where) for c, used in record["policies"].items()}
    return labels.draw(read(run / "scores.parquet"), policies, there, methods, asked.n or LABELS, asked.seed)


def _price(given: str) -> Price:
    """What ``--price`` says: dollars for a million tokens read, and for a million written."""
    from pydantic import ValidationError

    from harness.cards.judge import Price

    try:
        read, written = (float(part) for part in given.split(","))
        return Price(input_per_million=read, output_per_million=written, as_of="given by --price")
    except (ValueError, ValidationError):
        raise UserError(
            f"--price {given!r}: two numbers from 0 up, US dollars for a million tokens read and written, e.g. 2.5,10"
        ) from None


def _spent(cost: Mapping[str, Any]) -> str:
    """What a remote judge took, in words; nothing of a judge that takes no money, or was not asked."""
    if "dollars" not in cost:
        return ""
    if cost["dollars"] is None:
        return ", at a cost that is not known"
    return f", ${cost['dollars']:.4f}" + (", in part estimated" if cost["uncounted"] else "")


def _asked(record: Mapping[str, Any], task: str, **given: Any) -> Asked:
    from harness.judges import tasks
    from harness.judges.questions import Asked

    return Asked(task=tasks.task(task), shapes=is_shapes_world(record["backbone"]), **given)


def _only(record: dict[str, Any], bench: str | None) -> dict[str, Any]:
    """The record with the conditions of some benchmarks only."""
    from harness.errors import nearest

    if bench is None:
        return record
    known = list(dict.fromkeys(c["bench"] for c in record["conditions"]))
    wanted = options.split(bench)
    for name in wanted:
        if name not in known:
            raise UserError(f"the run has no benchmark {name!r}{nearest(name, known)} (it has: {', '.join(known)})")
    return {**record, "conditions": [c for c in record["conditions"] if c["bench"] in wanted]}


def _print(counts: Sequence[Mapping[str, Any]]) -> None:
    """A line per count: what, k/n, interval, and what is missing."""
    for c in counts:
        what = f"{c['bench']}  {c['second']}" + (f" against {c['first']}" if c["first"] else "")
        rate = f"{c['k']}/{c['n']}"
        if c["n"]:
            rate += f" = {c['k'] / c['n']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"
        typer.echo(f"{what}: {rate}" + "".join(f", {note}" for note in _notes(c)))


def _notes(c: Mapping[str, Any]) -> list[str]:
    notes = [f"{c['missing']} missing"] if c["missing"] else []
    notes += [f"{code} {k}" for code, k in c.get("errors", {}).items()]
    if c.get("unavailable"):
        notes.append(f"{c['unavailable']} rows without image")
    shown = c.get("shown_first_chosen")
    if shown:
        notes.append(f"the one shown first chosen {shown['k']}/{shown['n']}")
    if "votes" in c:
        notes.append(f"votes {c['votes']['k']}/{c['votes']['n']}, ties {c['ties']}, skipped {c['skipped']}")
    if c.get("alpha") is not None:
        notes.append(f"Krippendorff's alpha {c['alpha']:.3f}")
    return notes
