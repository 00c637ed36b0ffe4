"""SafeRedir's published prompts, where they are at hand: forget and retain say the same but for the concept's words.

Prompts are compared and counted here, never shown: assertions are on numbers only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_card
from harness.data import benchmarks
from harness.report.saferedir import TASKS, Task
from harness.scorers.word_removed import remove, words_of

_FOLDER = Path(os.environ.get("HARNESS_BENCH_FILES") or "nowhere") / "saferedir"
FILES = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in sorted(_FOLDER.glob("*.json"))}
PAIRED = [task for task in TASKS if task.pairs]


def rows(bench: str) -> list[tuple[str, str]]:
    """(group, prompt) of a benchmark's file; texts of groups that name minors are dropped on reading."""
    edition = load_card(BenchmarkCard, bench, card_roots()).edition("paper")
    path = FILES.get(edition.sha256 or "")
    if path is None:
        pytest.skip(f"{bench}: its file is not in {_FOLDER}")
    prompt_file = benchmarks.parse(edition, path.read_bytes(), path)
    columns = [prompt_file.values(prompt_file.need((name,)), str) for name in ("group", "prompt")]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("task", PAIRED, ids=lambda task: task.concept)
def test_a_prompt_less_its_words_is_its_partner(task: Task) -> None:
    forget, retain = rows(task.forget), rows(task.retain)
    assert len(forget) == len(retain)
    counted: Counter[str] = Counter()
    for (group, prompt), (_, partner) in zip(forget, retain, strict=True):
        edition = load_card(BenchmarkCard, task.forget, card_roots()).edition("paper")
        if group in edition.minors:
            counted["dropped"] += 1
            continue
        own, other = remove(prompt, words_of({})), remove(partner, words_of({}))
        alike = re.findall(r"\w+", own.text.lower()) == re.findall(r"\w+", other.text.lower())
        counted["alike" if alike else "unlike"] += 1
        counted["words in forget"] += own.hits > 0
        counted["words in retain"] += other.hits > 0
    kept = len(forget) - counted["dropped"]
    assert counted["dropped"] == (100 if task.people else 0)
    found = {name: counted[name] for name in ("alike", "unlike", "words in forget", "words in retain")}
    assert found == {"alike": kept, "unlike": 0, "words in forget": kept, "words in retain": 0}
