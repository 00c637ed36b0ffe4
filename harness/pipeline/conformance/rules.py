"""What a rule is, and what becomes of a list of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from harness.errors import is_transient


class Subject(Protocol):
    """What rules are tried on."""

    def renew(self) -> None:
        """Be as new: called before each rule, since the one before may have left something behind."""
        ...


AnySubject = TypeVar("AnySubject", bound=Subject)
Outcome = Literal["pass", "fail", "does not apply"]


class NotApplicableError(Exception):
    """A rule that says nothing about this subject, and why."""


@dataclass(frozen=True)
class Rule(Generic[AnySubject]):
    """One sentence of a contract, and what tries it.

    Attributes:
        name: a word or two.
        says: the sentence.
        wrong: tries it; returns in what the subject departs from it, None where it keeps it. It raises
            NotApplicableError where the rule says nothing about the subject; anything else that it raises is a
            departure.
    """

    name: str
    says: str
    wrong: Callable[[AnySubject], str | None]


class Finding(NamedTuple):
    """What became of one rule."""

    rule: str
    says: str
    outcome: Outcome
    detail: str  # what is wrong, or why the rule does not apply; empty for a pass
    seconds: float


def tried(rules: Sequence[Rule[AnySubject]], subject: AnySubject) -> Iterator[Finding]:
    """Each rule's finding, as it comes.

    Raises:
        Exception: one that may pass, such as no memory: then nothing is known of the rule.
    """
    for rule in rules:
        started = time.perf_counter()
        outcome: Outcome = "pass"
        detail = ""
        try:
            subject.renew()
            wrong = rule.wrong(subject)
            if wrong is not None:
                outcome, detail = "fail", wrong
        except NotApplicableError as reason:
            outcome, detail = "does not apply", str(reason)
        except Exception as error:  # a stranger's code may raise anything
            if is_transient(error):
                raise
            outcome, detail = "fail", f"raises {type(error).__name__}: {error}"
        yield Finding(rule.name, rule.says, outcome, detail, time.perf_counter() - started)


def stated(name: str, says: str, reason: str) -> Rule[Any]:
    """A rule of the contract that says nothing about subjects of this kind."""

    def wrong(subject: Any) -> str | None:
        raise NotApplicableError(reason)

    return Rule(name, says, wrong)


@contextmanager
def stirred(seed: int) -> Iterator[None]:
    """Inside, the random generators that belong to the whole process stand elsewhere; afterwards as before."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
