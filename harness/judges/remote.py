"""Ask a model behind an API that speaks OpenAI's chat completions.

Nothing is sent unless it was not answered before, its cost was estimated and found within the cap, and, for
images, the user allowed it. The key stays in the client: it is in no message, file or log of ours.
"""

from __future__ import annotations

import base64
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from harness.cards.judge import JudgeCard
from harness.errors import TransientError, UserError
from harness.judges.answers import REFUSAL, REJECTED, Answers, Question, Reply
from harness.judges.endpoint import Endpoint, dollars, encode, estimate, identity
from harness.judges.tasks import refuses

_ATTEMPTS = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_LONGEST_PATIENCE_S = 120.0  # a server that asks for more is not waited for
_GIVE_UP = 3  # questions in a row without an answer after which the server counts as down
_CONTENT_CODES = ("content_policy_violation", "content_filter", "moderation_blocked")


@dataclass
class Spent:
    """How many answers and tokens were paid for in this run, by the server's own count."""

    answers: int = 0
    uncounted: int = 0  # of them, those without the server's count: by our estimate, which errs upwards
    input_tokens: int = 0
    output_tokens: int = 0


class Remote:
    """A judge behind an API.

    Args:
        card: of backend "openai".
        to: where questions go, and the price there.
        max_cost: dollars after which no more is sent, as ``Spent`` counts; says nothing where the price is not known.
        pause: waits that many seconds; returns at once when the run is being given up.
    """

    def __init__(
        self, card: JudgeCard, to: Endpoint, *, max_cost: float, pause: Callable[[float], object] | None = None
    ) -> None:
        try:
            import openai  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise UserError(
                f"judge {card.name} needs the package openai: pip install '.[judge]' in a clone, or, of a wheel, "
                "pip install 'FILE.whl[judge]'"
            ) from None

        self._openai, self._card, self._to, self._max_cost = openai, card, to, max_cost
        # Not the client's own retries: their waits cannot be called off once the server counts as down, they ask again
        # where a quota is spent, and they know nothing of a reply cut short. And a redirect must not carry images
        # elsewhere.
        self._client = openai.OpenAI(
            api_key=to.key,
            base_url=to.url,
            max_retries=0,
            timeout=card.timeout_s,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._lock = threading.Lock()
        self._misses = 0  # in a row
        self._rejections = 0
        self._last = "the server gave no answer"
        self.spent = Spent()

    @property
    def identity(self) -> dict[str, Any]:
        """See ``answers.Judge``."""
        return identity(self._card, self._to)

    def ask(self, questions: Sequence[Question], memory: Answers) -> None:
        """See ``answers.Judge``. A few questions are under way at once; each answer is kept as soon as it is there."""
        self._stop.clear()
        self._misses = 0
        with ThreadPoolExecutor(self._card.concurrency) as pool:
            jobs = [pool.submit(self._settle, q, memory) for q in questions]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                mistakes = [e for job in done if (e := job.exception()) is not None]
            finally:
                self._stop.set()
                for job in jobs:
                    job.cancel()
        if mistakes:
            raise mistakes[0]
        left = len(memory.unknown(questions))
        if left:
            raise TransientError(
                f"judge {self._card.name}: {left} of {len(questions)} questions are not answered yet: {self._last}"
            )

    def _settle(self, question: Question, memory: Answers) -> None:
        """Ask one question and keep its answer; a passing failure leaves it open."""
        if self._stop.is_set():
            return
        try:
            reply = self._reply(question)
        except TransientError as error:
            with self._lock:
                self._last = str(error)
                self._misses += 1
                if self._misses >= _GIVE_UP:
                    self._stop.set()
            return
        # What was turned down before says nothing new about the settings, and must not stop a run for good.
        news = reply.error == REJECTED and not memory.turned_down(question)
        memory.put(question, reply)
        read, written = reply.input_tokens or 0, reply.output_tokens or 0
        uncounted = (
            reply.error != REJECTED and reply.text is not None and None in (reply.input_tokens, reply.output_tokens)
        )
        if uncounted:
            guess = estimate(self._card, [question], self._to.price)
            read, written = max(read, guess.input_tokens), max(written, guess.output_tokens)
        with self._lock:
            self._misses = 0
            self._rejections += news
            if self._rejections >= _GIVE_UP and not self.spent.answers:
                raise UserError(
                    f"judge {self._card.name}: nothing but rejections: {reply.text}; should the questions be to blame "
                    "and not the settings, run the same command again: it begins with others"
                )
            self.spent.answers += reply.error != REJECTED
            self.spent.uncounted += uncounted
            self.spent.input_tokens += read
            self.spent.output_tokens += written
            cost = dollars(self._to.price, self.spent.input_tokens, self.spent.output_tokens)
        if cost is not None and cost > self._max_cost:
            raise UserError(
                f"judge {self._card.name}: the answers so far cost ${cost:.4f}, more than --max-cost "
                f"{self._max_cost:g}; they are kept, and no more is sent"
            )

    def _reply(self, question: Question) -> Reply:
        """One answer, asked for until it comes or patience ends."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(encode(p.png(), self._card.max_side))}}
            for p in question.images
        ]
        content.append({"type": "text", "text": question.prompt})
        retrying = Retrying(
            retry=retry_if_exception_type(_AgainError),
            wait=_delay,
            stop=self._is_enough,
            sleep=self._wait,
            reraise=True,
        )
        try:
            return retrying(self._once, content, question.max_new_tokens)
        except _AgainError as error:
            raise TransientError(str(error)) from None

    def _is_enough(self, state: RetryCallState) -> bool:
        """Whether to give a question up: asked often enough, the run is over, or the server wants too long a wait."""
        return state.attempt_number >= _ATTEMPTS or self._stop.is_set() or state.upcoming_sleep > _LONGEST_PATIENCE_S

    def _wait(self, seconds: float) -> None:
        self._pause(seconds)

    def _once(self, content: list[dict[str, Any]], max_tokens: int) -> Reply:
        api = self._openai
        try:
            completion = self._client.chat.completions.create(
                model=self._to.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc,unused-ignore]
                temperature=0,
                max_tokens=max_tokens,
            )
        except api.APIStatusError as error:
            return self._refused(error)
        except api.APITimeoutError:
            raise _AgainError(f"no answer within {self._card.timeout_s:g} s") from None
        except api.APIConnectionError as error:
            raise _AgainError(f"no connection: {self._plain(error.__cause__ or error)}") from None
        except (api.APIError, ValueError) as error:  # a body that is no JSON, or breaks off
            raise _AgainError(f"an answer that cannot be read ({type(error).__name__})") from None
        return self._understood(completion)

    def _understood(self, completion: Any) -> Reply:
        """The reply in a completion.

        Raises:
            _AgainError: it has not the form of one.
        """
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            raise _AgainError("an answer that is no chat completion")
        text, declined = getattr(message, "content", None), getattr(message, "refusal", None)
        usage = getattr(completion, "usage", None)
        read, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        refusal = bool(declined) or getattr(choice, "finish_reason", None) == "content_filter"
        if not isinstance(text, str) and not refusal:
            raise _AgainError("an answer without a text")
        return Reply(
            text=text if isinstance(text, str) else None,
            error=REFUSAL if refusal or refuses(text or "") else None,
            model=str(getattr(completion, "model", None) or self._to.model),
            date=_now(),
            input_tokens=read if isinstance(read, int) else None,
            output_tokens=written if isinstance(written, int) else None,
        )

    def _refused(self, error: Any) -> Reply:
        """What a status that is no success means: a final answer, another try, or a mistake in the settings."""
        status, code = int(error.status_code), error.code
        said = f"{self._to.shown} says {status}: {self._plain(error)}"
        if code in _CONTENT_CODES:
            return Reply(text=None, error=REFUSAL, model=self._to.model, date=_now())
        if code == "insufficient_quota" or status in (401, 403, 404) or 300 <= status < 400:
            raise UserError(f"judge {self._card.name}: {said}")
        if status in (408, 409, 429) or status >= 500:
            raise _AgainError(said, _retry_after(error.response.headers))
        if status in (400, 413, 415, 422):
            return Reply(text=said, error=REJECTED, model=self._to.model, date=_now())
        raise UserError(f"judge {self._card.name}: {said}")

    def _plain(self, error: object) -> str:
        """The first line of a message, short, and without the key should a server have echoed it."""
        text = str(error).replace(self._to.key, "***") if len(self._to.key) >= 8 else str(error)
        return next(iter(text.splitlines()), "")[:200]


class _AgainError(Exception):
    """Worth another try, ``after`` that many seconds if the server said so."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


_BACKOFF = wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)


def _delay(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the server asked for, else growing waits with some jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, _AgainError) else None
    return _BACKOFF(state) * random.uniform(0.75, 1.0) if asked is None else asked


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            delay = float(value) / unit
        except ValueError:
            try:
                delay = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
            except (TypeError, ValueError):
                continue
        if not math.isnan(delay):
            return max(0.0, delay)
    return None


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
