"""Questions, replies, and the folder that remembers them so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.judges.images import StoredImage
from harness.store import fingerprint
from harness.store.files import write_atomically

# Why there is no verdict: the judge declined, the server would not take the question, the answer says neither; or
# nothing was asked, since a caption that the question needs was refused, or is empty.
REFUSAL, REJECTED, UNREADABLE = "judge:refusal", "judge:rejected", "judge:unreadable"
NO_CAPTION = "judge:no-caption"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt about no, one or several images, in the order shown."""

    task: str
    version: int
    prompt: str
    images: tuple[StoredImage, ...] = ()
    max_new_tokens: int = 16

    @property
    def key(self) -> str:
        """sha256 of all that the answer depends on beside the judge."""
        content = [self.task, self.version, self.prompt, self.max_new_tokens, [p.sha256 for p in self.images]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A final answer: a text, or a stable error code that asking again would not change."""

    text: str | None
    error: str | None = None
    model: str  # as whoever answered calls itself
    date: str  # ISO 8601, UTC
    input_tokens: int | None = None
    output_tokens: int | None = None


class Judge(Protocol):
    """What questions can be put to: a model on this machine or behind an API."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the answers depend on: model, revision or address, and settings; JSON-able, without secrets."""
        ...

    def ask(self, questions: Sequence[Question], memory: Answers) -> None:
        """Put the answer to each question into ``memory``, each as soon as it is there.

        Raises:
            TransientError: some could not be answered now.
            UserError: none can be, for a reason a person can mend.
        """
        ...


class Answers:
    """Replies of one judge on disk: ``<store>/judge/<fingerprint of the judge>/<question>.json``.

    A question that the server would not take leaves ``<question>.rejected``, an empty file: it is asked again, last.
    """

    def __init__(self, store: Path, identity: Mapping[str, Any]) -> None:
        self.folder = store / "judge" / fingerprint.digest(identity)
        self._identity = identity
        self._rejected: dict[str, Reply] = {}  # of this process: a setting may be to blame, so not for ever

    def get(self, question: Question) -> Reply | None:
        """The stored reply to a question; None where there is none."""
        if question.key in self._rejected:
            return self._rejected[question.key]
        path = self._path(question)
        return Reply(**json.loads(path.read_text())) if path.exists() else None

    def put(self, question: Question, reply: Reply) -> None:
        """Remember; written whole or not at all. Why a question was not taken is remembered in this process only."""
        about = self.folder / "stage.json"
        if not about.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(about, json.dumps(self._identity, indent=1, sort_keys=True).encode())
        if reply.error == REJECTED:
            self._rejected[question.key] = reply
            self._mark(question).touch()
            return
        write_atomically(self._path(question), json.dumps(asdict(reply)).encode())
        self._mark(question).unlink(missing_ok=True)

    def turned_down(self, question: Question) -> bool:
        """Whether the server would not take it when it was asked last, by this process or an earlier one."""
        return self._mark(question).exists()

    def unknown(self, questions: Sequence[Question]) -> list[Question]:
        """Those not answered yet, each once and in order; those turned down before come after all others."""
        different = {q.key: q for q in questions}
        left = [q for k, q in different.items() if k not in self._rejected and not self._path(q).exists()]
        return sorted(left, key=self.turned_down)

    def _path(self, question: Question) -> Path:
        return self.folder / f"{question.key}.json"

    def _mark(self, question: Question) -> Path:
        return self.folder / f"{question.key}.rejected"
