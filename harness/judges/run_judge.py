"""One `harness judge ask`: read the run, ask what was not answered before, write the answers beside the run.

runs/<run>/judges/<task>_<judge>_<hash>.parquet   one line per question, deterministic columns
runs/<run>/judges/<task>_<judge>_<hash>.json      who answered and when, what it cost, what was counted
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.cards.judge import JudgeCard, Price
from harness.errors import UserError
from harness.judges import endpoint, questions
from harness.judges.answers import Answers, Judge, Question
from harness.judges.by_rule import ByRule
from harness.judges.images import StoredImage, place, read_run
from harness.judges.local import CAPTION, CAPTION_VERSION, Local, require_understanding
from harness.judges.questions import Asked, Count, Line
from harness.models import weights
from harness.store import fingerprint
from harness.store.files import require_writable, write_atomically
from harness.store.version import __version__


@dataclass(frozen=True, kw_only=True)
class Consent:
    """The user's consent to send images, cap on cost, and price, for a remote judge."""

    images: bool = False
    max_cost: float | None = None  # US dollars; null: ``sending.MAX_COST``, as far as the price is known
    price: Price | None = None  # null: the card's, of its own model at its own address
    say: Callable[[str], object] = lambda said: None  # told what is about to be sent, and for how much


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The counts of a judge's answers, and the files that they were written to."""

    counts: tuple[Count, ...]
    path: Path  # the Parquet file; the sidecar lies beside
    sidecar: Mapping[str, Any]


def ask_run(
    run: Path, record: Mapping[str, Any], store: Path, cards: tuple[JudgeCard, JudgeCard | None], asked: Asked,
    methods: Sequence[str], consent: Consent, environ: Mapping[str, str],
) -> Finished:  # fmt: skip
    """Ask and write.

    Args:
        run: the run's folder.
        record: its run.json.
        store: folder of the store that holds its images.
        cards: the judge, and for "faithful" who describes images.
        asked: the task and its options.
        methods: ``defense/variant`` names; see ``ask.choose``.
        consent: what a remote judge may be sent, and cost.
        environ: the environment.

    Raises:
        UserError: nothing to ask about, a judge that cannot answer, images or cost that were not allowed.
        TransientError: some answers are still missing; those that came are kept.
    """
    card, captioner = cards
    require_understanding(card)
    require_writable(run / "judges", "answers:", folder=True)
    images = read_run(record, store)
    items = questions.choose(images, asked, [place(name, images.places) for name in methods])
    if not items:
        raise UserError(f"run {record['run']} has no row with every image that task {asked.task.name} needs")
    captions = None
    if asked.task.name == "faithful":
        captions = describe(questions.to_caption(items, images, asked), captioner, store, card)
    lines = questions.lines(items, images, asked, captions)
    judge, memory, money = _ask(card, lines, store, consent, environ)
    answers = questions.table(lines, asked.task, memory.get)
    counts = tuple(questions.count(answers, images))
    content = {
        "task": asked.task.name, "version": asked.task.version, "seed": asked.seed, "n": asked.n,
        "both_orders": asked.both_orders, "artist": asked.artist, "methods": list(methods),
        "benches": list(dict.fromkeys(condition["bench"] for condition in record["conditions"])),
        "reference": asked.reference if captions is not None else None, "captioner": captioner and captioner.name,
        "judge": dict(judge),
    }  # fmt: skip
    sidecar = {
        **content,
        "run": record["run"], "harness": __version__, "prompt": asked.task.prompt, "cites": asked.task.cites,
        "counted": asked.task.counted, "counts": [c.as_json() for c in counts],
        "answered": _answered(lines, memory), "cost": money,
    }  # fmt: skip
    path = run / "judges" / f"{asked.task.name}_{card.name}_{fingerprint.digest(content)[:8]}.parquet"
    write(path, answers, sidecar)
    return Finished(counts=counts, path=path, sidecar=sidecar)


def _ask(
    card: JudgeCard, lines: Sequence[Line], store: Path, consent: Consent, environ: Mapping[str, str]
) -> tuple[Mapping[str, Any], Answers, dict[str, Any]]:
    """Who was asked, the answers, and what they cost."""
    questions = [line.question for line in lines if line.question is not None]
    if card.backend != "openai":
        local: Judge = Local(card) if card.backend == "local" else ByRule(card)
        memory = Answers(store, local.identity)
        unknown = memory.unknown(questions)
        _require_weights(card if unknown else None)
        local.ask(unknown, memory)
        return local.identity, memory, {"asked": len(unknown), "known_before": len(questions) - len(unknown)}
    to = endpoint.endpoint(card, environ, consent.price)
    memory = Answers(store, endpoint.identity(card, to))
    unknown = memory.unknown(questions)
    money: dict[str, Any] = {"asked": len(unknown), "known_before": len(questions) - len(unknown)}
    if unknown:
        from harness.judges.remote import Remote

        estimate = endpoint.estimate(card, unknown, to.price)
        cap = endpoint.check(card, to, estimate, allow_images=consent.images, max_cost=consent.max_cost)
        remote = Remote(card, to, max_cost=cap)
        consent.say(f"judge {card.name}: {endpoint.announcement(to, estimate)}")
        remote.ask(unknown, memory)
        spent = remote.spent
        money |= {
            "estimate": estimate._asdict(), "price": to.price and to.price.model_dump(),
            "input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens,
            "uncounted": spent.uncounted,
            "dollars": endpoint.dollars(to.price, spent.input_tokens, spent.output_tokens),
        }  # fmt: skip
    return endpoint.identity(card, to), memory, money


def _require_weights(*cards: JudgeCard | None) -> None:
    """Refuse a model that is not on this machine before anything is loaded or asked.

    Raises:
        UserError: how to get what is missing, a line each.
    """
    lines = [line for card in cards if card is not None for ref in card.weights() for line in weights.missing(ref)]
    if lines:
        raise UserError("; ".join(dict.fromkeys(lines)))


def describe(
    images: Sequence[StoredImage], card: JudgeCard | None, store: Path, judge: JudgeCard | None = None
) -> dict[str, str]:
    """The caption of each image by its sha256, asked of a captioner on this machine or remembered.

    An image that it refused to describe, or said nothing of, is left out: a refusal is no caption. ``judge`` is who is
    asked about the captions afterwards: where its weights are missing, none is made.

    Raises:
        UserError: no captioner, one that is not on this machine, or weights that are not here.
    """
    if card is None or card.backend != "local":
        raise UserError("task faithful compares captions: say who makes them with --captioner (of backend local)")
    questions = {
        p.sha256: Question(
            task="caption", version=CAPTION_VERSION, prompt=CAPTION.prompt, images=(p,),
            max_new_tokens=CAPTION.max_new_tokens,
        )
        for p in images
    }  # fmt: skip
    captioner = Local(card)
    memory = Answers(store, captioner.identity)
    unknown = memory.unknown([*questions.values()])
    if unknown:
        _require_weights(card, judge)
    captioner.caption(unknown, memory)
    replies = {sha256: memory.get(question) for sha256, question in questions.items()}
    return {sha256: reply.text for sha256, reply in replies.items() if reply and reply.text and not reply.error}


def _answered(lines: Sequence[Line], memory: Answers) -> dict[str, Any]:
    """Which model answered how often, by its own name, and from when to when."""
    questions = [line.question for line in lines if line.question is not None]
    replies = [reply for question in questions if (reply := memory.get(question)) is not None]
    models: dict[str, int] = {}
    for reply in replies:
        models[reply.model] = models.get(reply.model, 0) + 1
    dates = [reply.date for reply in replies]
    return {"models": models, "first": min(dates, default=None), "last": max(dates, default=None)}


def write(path: Path, table: pa.Table, sidecar: Mapping[str, Any]) -> None:
    """Table and sidecar, each whole or not at all; the table's bytes depend on its content only."""
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd", write_statistics=False)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, data.getvalue())
    write_atomically(path.with_suffix(".json"), (json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n").encode())
