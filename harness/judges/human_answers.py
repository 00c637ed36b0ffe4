"""Read what people answered in a form: checked against its key, counted, and how far they agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import UserError
from harness.judges import human_form
from harness.metrics.bootstrap import ShareInterval, share
from harness.metrics.rates import Tally

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("bench", pa.string()),
        ("concept", pa.string()),
        ("cluster", pa.string()),  # see ``harness.metrics.clusters``
        ("task", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("second_shown_first", pa.bool_()),
        ("rater", pa.string()),
        ("answer", pa.string()),  # as chosen; "tie"; null: skipped or not reached
        ("verdict", pa.bool_()),  # yes, or the second is the better one; null: tie or none
    ]
)


@dataclass(frozen=True, kw_only=True)
class RaterAnswers:
    """What one rater answered."""

    code: str  # by which the rater goes
    answers: Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True)
class PeopleCount:
    """Counts of people's answers for one benchmark and one method or pair of methods."""

    bench: str
    first: str | None
    second: str
    majority: Tally  # of items, by the most votes; missing: no votes, or as many for as against
    interval: ShareInterval  # of the majority, by cluster
    votes: Tally  # of single answers, without interval: those of one item, or of one person, hang together
    ties: int
    skipped: int
    alpha: float | None  # Krippendorff's, nominal; null: fewer than two raters, or nobody ever differs from one answer

    def as_json(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "bench": self.bench, "first": self.first, "second": self.second,
            "k": self.majority.k, "n": self.majority.n, "missing": self.majority.missing,
            "low": self.interval.low, "high": self.interval.high, "interval": self.interval.kind,
            "votes": self.votes._asdict(), "ties": self.ties, "skipped": self.skipped, "alpha": self.alpha,
        }  # fmt: skip


def read_key(path: Path) -> dict[str, Any]:
    """The content of a form's key file.

    Raises:
        UserError: the file is no key.
    """
    key = _json(path)
    if key.get("format") != human_form.KEY or key.get("version") != human_form.VERSION:
        raise UserError(f"{path} is no key of a form (of this release)")
    return key


def read_answers(paths: Sequence[Path], key: Mapping[str, Any]) -> list[RaterAnswers]:
    """What each rater answered, read from their files; sorted by the raters' codes.

    Raises:
        UserError: a file that is no answers, of another form, with questions or choices that the form does not have;
            one rater twice.
    """
    if not paths:
        raise UserError("no files of answers given")
    files: dict[str, Path] = {}
    raters = []
    for path in paths:
        saved = _json(path)
        if saved.get("format") != human_form.ANSWERS or saved.get("version") != human_form.VERSION:
            raise UserError(f"{path} is no file of answers (of this release's forms)")
        if saved.get("form") != key["form"]:
            raise UserError(f"{path} answers form {saved.get('form')!r}, the key is of form {key['form']!r}")
        rater, answers = saved.get("rater"), saved.get("answers")
        if not isinstance(rater, str) or not rater.strip() or not isinstance(answers, dict):
            raise UserError(f"{path}: a rater's code and answers are needed")
        if rater in files:
            raise UserError(f"rater {rater!r} is in both {files[rater]} and {path}: each rater once")
        for question, answer in answers.items():
            if question not in key["items"]:
                raise UserError(f"{path}: the form has no question {question!r}")
            if answer is not None and answer not in key["choices"]:
                raise UserError(f"{path}: {question}: {answer!r} is no choice (there are: {', '.join(key['choices'])})")
        files[rater] = path
        raters.append(RaterAnswers(code=rater, answers=answers))
    return sorted(raters, key=lambda rater: rater.code)


def table(raters: Sequence[RaterAnswers], key: Mapping[str, Any]) -> pa.Table:
    """Every question by every rater, schema ``SCHEMA``."""
    lines = []
    for name, item in key["items"].items():
        for rater in raters:
            answer = rater.answers.get(name)
            lines.append(
                {**item, "task": key["task"], "rater": rater.code, "answer": answer, "verdict": verdict(answer, item)}
            )
    return pa.Table.from_pylist(lines, schema=SCHEMA)


def verdict(answer: str | None, item: Mapping[str, Any]) -> bool | None:
    """The verdict that an answer stands for: yes, or that the second method is better; None for a tie or no answer."""
    if answer is None or answer == human_form.TIE:
        return None
    if item["second_shown_first"] is None:
        return answer == "yes"
    return (answer == "2") is not bool(item["second_shown_first"])


def count(answers: pa.Table) -> list[PeopleCount]:
    """K of n items by majority, votes, and agreement, for each benchmark and method or pair.

    Args:
        answers: schema ``SCHEMA``.
    """
    rows = answers.to_pylist()
    counts = []
    for group in dict.fromkeys((r["bench"], r["first"], r["second"]) for r in rows):
        mine = [r for r in rows if (r["bench"], r["first"], r["second"]) == group]
        items: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for r in mine:
            items.setdefault((r["row_id"], r["sample"]), []).append(r)
        decided = [majority([r["verdict"] for r in item]) for item in items.values()]
        names = {(r["row_id"], r["sample"]): r["cluster"] or r["row_id"] for r in mine}
        votes = [r["verdict"] for r in mine if r["verdict"] is not None]
        said = [[_unblinded(r) for r in item if r["answer"] is not None] for item in items.values()]
        judged = [d for d in decided if d is not None]
        counts.append(
            PeopleCount(
                bench=group[0],
                first=group[1],
                second=group[2],
                majority=Tally(sum(judged), len(judged), len(decided) - len(judged)),
                interval=share([names[item] for item in items], decided),
                votes=Tally(sum(votes), len(votes), len(mine) - len(votes)),
                ties=sum(r["answer"] == human_form.TIE for r in mine),
                skipped=sum(r["answer"] is None for r in mine),
                alpha=krippendorff_alpha(said),
            )
        )
    return counts


def _unblinded(line: Mapping[str, Any]) -> str:
    """What a rater said of the methods, a tie being an answer of its own."""
    return human_form.TIE if line["verdict"] is None else str(line["verdict"])


def majority(verdicts: Sequence[bool | None]) -> bool | None:
    """The verdict of most votes; None without votes, or where as many are for as against."""
    yes, no = sum(v is True for v in verdicts), sum(v is False for v in verdicts)
    return None if yes == no else yes > no


def krippendorff_alpha(items: Sequence[Sequence[str]]) -> float | None:
    """Agreement beyond chance of any number of raters, with answers missing at will: 1 is perfect, 0 is chance.

    Krippendorff, Content Analysis (2004), Chapter 11, nominal metric: 1 - observed / expected disagreement, over
    the pairs of answers within an item that has two or more.

    Args:
        items: for each item the answers it got.

    Returns:
        None when no item has two answers, or when every answer is the same and chance cannot be told.
    """
    paired = [Counter(item) for item in items if len(item) > 1]
    total: Counter[str] = sum(paired, Counter())
    n = total.total()
    expected = n * n - sum(c * c for c in total.values())
    if not expected:
        return None
    observed = sum((m * m - sum(c * c for c in item.values())) / (m - 1) for item in paired if (m := item.total()))
    return 1 - (n - 1) * observed / expected


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is no JSON file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not what a form saves")
    return content
