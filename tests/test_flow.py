"""The flow without models: errors, budgets, resources, and Ray with more GPUs in name than in fact."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.evaluate import Budget
from harness.flow import Outcome, Resources, check


@pytest.mark.parametrize(
    ("text", "errors", "rows", "exceeded"),
    [
        ("0", 0, 100, False), ("0", 1, 100, True), ("5", 5, 100, False), ("5", 6, 100, True),
        ("5%", 5, 100, False), ("5%", 6, 100, True), ("2.5%", 5, 200, False), ("100%", 200, 200, False),
    ],
)  # fmt: skip
def test_a_budget_is_a_number_of_rows_or_a_share(text: str, errors: int, rows: int, exceeded: bool) -> None:
    assert Budget.parse(text).exceeded(errors, rows) is exceeded


@pytest.mark.parametrize("text", ["", "-1", "5 %x", "101%", "few", "1.5", "%"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--max-errors"):
        Budget.parse(text)


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="--workers 3"):
        check(Resources(workers=3, num_gpus=2))
    check(Resources(workers=2, num_gpus=2))
    check(Resources(workers=8, num_gpus=0))


def test_an_outcome_is_complete_only_if_every_ticket_came_back_well() -> None:
    outcome = Outcome()
    outcome.add({"status": "ok", "detail": "", "errors": 2})
    assert outcome.complete
    outcome.add({"status": "incomplete", "detail": "generate: out of memory", "errors": 0})
    outcome.add({"status": "incomplete", "detail": "generate: out of memory", "errors": 0})
    assert not outcome.complete
    assert (outcome.errors, outcome.details, outcome.statuses["incomplete"]) == (2, ["generate: out of memory"], 2)


def test_the_run_folder_of_a_request_is_always_the_same(tmp_path: Path) -> None:
    from harness import cards
    from harness.fingerprint import FileHashes
    from harness.plan import Request, make

    def name(**choices: object) -> str:
        request = Request(defenses=("uce",), benches=("direct",), profile="shapes", **choices)  # type: ignore[arg-type]
        return make(request, cards.roots(), tmp_path, FileHashes()).name

    assert name() == name()
    assert len({name(), name(limit=3), name(seed=1), name(concept="violence")}) == 4
