"""The real client against a server of this machine, faults included."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import struct
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from chat_server import ChatServer, Fault, completion
from made_run import MadeRun

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard, Price
from harness.cards.load import load_card
from harness.errors import TransientError, UserError
from harness.judges import endpoint
from harness.judges.answers import REFUSAL, REJECTED, Answers, Question
from harness.judges.images import StoredImage, read_run
from harness.judges.remote import Remote

pytest.importorskip("openai", reason="the optional package openai is not installed")

KEY = "sk-test-0123456789abcdef"
CARD = load_card(JudgeCard, "gpt-judge", card_roots())
PRICE = Price(input_per_million=2.5, output_per_million=10.0, as_of="2026-01")


class Asking:
    """A remote judge that notes its waits and waits a hundredth of them."""

    def __init__(self, server: ChatServer, store: Path, *, max_cost: float = 5.0, **changes: Any) -> None:
        self.card: JudgeCard = CARD.model_copy(update={"timeout_s": 0.5, **changes})
        environ = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "HARNESS_JUDGE_MODEL": "some-model"}
        self.to = endpoint.endpoint(self.card, environ, PRICE)
        self.waits: list[float] = []
        self.remote = Remote(self.card, self.to, max_cost=max_cost, pause=self._pause)
        self.memory = Answers(store, self.remote.identity)

    def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        time.sleep(seconds / 100)

    def ask(self, *questions: Question) -> None:
        self.remote.ask(self.memory.unknown(questions), self.memory)


def question(prompt: str = "1 or 2?", *images: StoredImage) -> Question:
    return Question(task="safer", version=1, prompt=prompt, images=images)


def test_an_answer_comes_with_who_gave_it_and_when(server: ChatServer, tmp_path: Path) -> None:
    asking = Asking(server, tmp_path)
    before = datetime.now(UTC).replace(microsecond=0)
    asking.ask(question())
    reply = asking.memory.get(question())
    assert reply is not None
    assert (reply.text, reply.error, reply.model) == ("1", None, "test-model-2026-01-01")
    assert before <= datetime.fromisoformat(reply.date) <= datetime.now(UTC)
    assert (reply.input_tokens, reply.output_tokens) == (100, 1)
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("some-model", 0)
    assert server.keys == [f"Bearer {KEY}"]


def test_nothing_is_asked_twice(server: ChatServer, tmp_path: Path) -> None:
    Asking(server, tmp_path).ask(question("a"), question("a"), question("b"))
    Asking(server, tmp_path).ask(question("a"), question("b"))
    assert len(server.requests) == 2
    later = Question(task="safer", version=2, prompt="a")
    Asking(server, tmp_path).ask(later)
    assert len(server.requests) == 3


@pytest.mark.parametrize("change", [{"max_side": 100}, {"name": "other"}])
def test_another_judge_is_asked_anew(server: ChatServer, tmp_path: Path, change: dict[str, Any]) -> None:
    Asking(server, tmp_path).ask(question())
    Asking(server, tmp_path, **change).ask(question())
    assert len(server.requests) == 2


def test_a_rate_limit_is_waited_for_as_long_as_it_says(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [
        Fault(status=429, error={"message": "slow down"}, headers={"retry-after": "7"}),
        Fault(status=429, error={"message": "slow down"}, headers={"retry-after-ms": "2500"}),
        Fault(status=503, headers={"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=60))}),
    ]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    assert asking.waits[:2] == [7.0, 2.5]
    assert 55 < asking.waits[2] <= 60
    assert asking.memory.get(question()) is not None


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=429, error={"message": "come back later"}, headers={"retry-after": "3600"})]
    asking = Asking(server, tmp_path)
    with pytest.raises(TransientError, match="come back later"):
        asking.ask(question())
    assert asking.waits == []


@pytest.mark.parametrize("header", ["nan", "soon", ""])
def test_a_wait_that_is_no_number_is_chosen_by_us(server: ChatServer, tmp_path: Path, header: str) -> None:
    server.faults = [Fault(status=429, headers={"retry-after": header})]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    assert 0.75 <= asking.waits[0] <= 1.0


def test_errors_of_the_server_are_retried_with_growing_waits(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=500), Fault(status=502, body=b"<html>bad gateway</html>"), Fault(status=529)]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    assert len(server.requests) == 4
    assert 0.75 <= asking.waits[0] <= 1 <= 1.5 <= asking.waits[1] <= 2 <= 3 <= asking.waits[2] <= 4


def test_a_timeout_is_retried_and_then_passing(server: ChatServer, tmp_path: Path) -> None:
    asking = Asking(server, tmp_path, timeout_s=0.1)
    server.faults = [Fault(sleep_s=0.3)]
    asking.ask(question("late once"))
    assert len(server.requests) == 2
    server.faults = [Fault(sleep_s=0.3) for _ in range(5)]
    with pytest.raises(TransientError, match=r"1 of 1 questions are not answered yet: no answer within 0\.1 s"):
        asking.ask(question("late for ever"))
    assert asking.memory.get(question("late for ever")) is None
    server.faults.clear()
    asking.ask(question("late for ever"))
    assert asking.memory.get(question("late for ever")) is not None


def test_what_was_answered_before_a_failure_is_kept(server: ChatServer, tmp_path: Path) -> None:
    asking = Asking(server, tmp_path, concurrency=1)
    server.answer = lambda request: "2"
    asking.ask(question("good"))
    server.faults = [Fault(status=500) for _ in range(5)]
    with pytest.raises(TransientError, match="1 of 2"):
        asking.ask(question("bad"), question("good too"))
    assert asking.memory.get(question("good too")) is not None
    assert [q.prompt for q in asking.memory.unknown([question("good"), question("bad")])] == ["bad"]


def test_a_server_that_is_down_is_not_asked_a_hundred_times(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=500) for _ in range(1000)]
    asking = Asking(server, tmp_path, concurrency=2)
    with pytest.raises(TransientError, match="100 of 100"):
        asking.ask(*[question(str(i)) for i in range(100)])
    assert len(server.requests) <= 25


WHOLE = json.dumps(completion("1")).encode()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=WHOLE, cut=len(WHOLE) // 2),
        Fault(body=WHOLE[: len(WHOLE) // 2]),
        Fault(body=b""),
        Fault(body=b"[]"),
        Fault(body=b"null"),
        Fault(body=b"{}"),
        Fault(body=b'"1"'),
        Fault(body=json.dumps({**completion("1"), "choices": []}).encode()),
        Fault(body=json.dumps({**completion("1"), "choices": [None]}).encode()),
        Fault(body=json.dumps({**completion("1"), "choices": 3}).encode()),
        Fault(body=json.dumps(completion(None)).encode()),
    ],
    ids=[
        "cut off",
        "truncated",
        "empty",
        "list",
        "null",
        "object",
        "text",
        "no choice",
        "null choice",
        "number",
        "no text",
    ],
)
def test_an_answer_that_is_none_is_asked_for_again(server: ChatServer, tmp_path: Path, fault: Fault) -> None:
    server.faults = [fault]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    reply = asking.memory.get(question())
    assert reply is not None
    assert reply.text == "1"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=json.dumps(completion(None, refusal="I cannot help with that.")).encode()),
        Fault(body=json.dumps(completion("", finish_reason="content_filter")).encode()),
        Fault(body=json.dumps(completion("I'm sorry, I can't assist with that.")).encode()),
        Fault(status=400, error={"message": "policy", "code": "content_policy_violation"}),
        Fault(status=400, error={"message": "filtered", "code": "content_filter"}),
    ],
    ids=["refusal", "filter", "words", "policy", "azure"],
)
def test_a_refusal_is_final(server: ChatServer, tmp_path: Path, fault: Fault) -> None:
    server.faults = [fault]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    reply = asking.memory.get(question())
    assert reply is not None
    assert reply.error == REFUSAL
    asking.ask(question())
    assert len(server.requests) == 1


def test_a_nonsense_text_is_kept_as_it_is(server: ChatServer, tmp_path: Path) -> None:
    server.answer = lambda request: "purple \u2603 monkey"
    asking = Asking(server, tmp_path)
    asking.ask(question())
    reply = asking.memory.get(question())
    assert reply is not None
    assert (reply.text, reply.error) == ("purple \u2603 monkey", None)


def test_a_rejected_question_is_no_other_s_business_and_asked_again_next_time(
    server: ChatServer, tmp_path: Path
) -> None:
    asking = Asking(server, tmp_path, concurrency=1)
    asking.ask(question("good"))
    server.faults = [Fault(status=400, error={"message": "image too odd"})]
    asking.ask(question("odd"), question("fine"))
    odd, fine = (asking.memory.get(question(p)) for p in ("odd", "fine"))
    assert odd is not None
    assert fine is not None
    assert (odd.error, fine.error) == (REJECTED, None)
    assert Asking(server, tmp_path).memory.unknown([question("odd"), question("fine")]) == [question("odd")]


def _takes_only(server: ChatServer, good: set[str]) -> list[str]:
    """Let the server turn down every question but ``good``; returns what it is asked, as it comes."""
    asked: list[str] = []

    def look(request: dict[str, Any]) -> Fault | None:
        asked.append(request["messages"][0]["content"][-1]["text"])
        return None if asked[-1] in good else Fault(status=400, error={"message": "image too odd"})

    server.judge = look
    return asked


def test_a_run_is_not_stopped_for_good_by_odd_questions_at_its_start(server: ChatServer, tmp_path: Path) -> None:
    """Each new process begins with what was not turned down before, so that every rerun gets further."""
    questions = [question(p) for p in ("odd 1", "odd 2", "odd 3", "odd 4", "fine 1", "fine 2")]
    asked = _takes_only(server, {"fine 1", "fine 2"})
    with pytest.raises(UserError, match=r"nothing but rejections.*same command again.*others"):
        Asking(server, tmp_path, concurrency=1).ask(*questions)
    assert asked[:3] == ["odd 1", "odd 2", "odd 3"]
    served = asked.copy()  # three, and what was under way by then
    again = Asking(server, tmp_path, concurrency=1)
    again.ask(*questions)
    prompts = [q.prompt for q in questions]
    assert asked[len(served) :] == [p for p in prompts if p not in served] + [p for p in prompts[:4] if p in served]
    replies = [again.memory.get(q) for q in questions]
    assert [r and r.error for r in replies] == [REJECTED] * 4 + [None] * 2


def test_only_odd_questions_left_are_no_mistake_in_the_settings(server: ChatServer, tmp_path: Path) -> None:
    """The rest was answered by an earlier process, so that this one hears nothing but rejections."""
    questions = [question(p) for p in ("fine", "odd 1", "odd 2", "odd 3", "odd 4")]
    asked = _takes_only(server, {"fine"})
    for _ in range(3):
        asking = Asking(server, tmp_path, concurrency=1)
        asking.ask(*questions)
        replies = [asking.memory.get(q) for q in questions]
        assert [r and r.error for r in replies] == [None] + [REJECTED] * 4
    assert len(asked) == 5 + 4 + 4


def test_a_question_taken_at_last_is_no_longer_held_back(server: ChatServer, tmp_path: Path) -> None:
    questions = [question(p) for p in ("odd", "fine")]
    _takes_only(server, {"fine"})
    Asking(server, tmp_path).ask(*questions)
    _takes_only(server, {"fine", "odd"})
    Asking(server, tmp_path).ask(*questions)
    memory = Asking(server, tmp_path).memory
    assert memory.unknown(questions) == []
    assert not memory.turned_down(questions[0])
    assert not list(memory.folder.glob("*.rejected"))


def test_nothing_but_rejections_is_a_mistake_in_the_settings(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=400, error={"message": "unknown parameter"}) for _ in range(100)]
    asking = Asking(server, tmp_path, concurrency=1)
    with pytest.raises(UserError, match="unknown parameter"):
        asking.ask(*[question(str(i)) for i in range(50)])
    assert len(server.requests) <= 5


@pytest.mark.parametrize(
    ("status", "code"), [(401, "invalid_api_key"), (403, None), (404, "model_not_found"), (429, "insufficient_quota")]
)
def test_what_a_person_must_mend_stops_at_once_and_hides_the_key(
    server: ChatServer, tmp_path: Path, status: int, code: str | None
) -> None:
    server.faults = [Fault(status=status, error={"message": f"no use with {KEY} here", "code": code})] * 50
    asking = Asking(server, tmp_path, concurrency=1)
    with pytest.raises(UserError, match=rf"127\.0\.0\.1.*{status}.*no use") as raised:
        asking.ask(*[question(str(i)) for i in range(20)])
    assert KEY not in str(raised.value)
    assert len(server.requests) <= 5  # of 20: what is under way when the first answer is read
    assert asking.waits == []


def test_a_redirect_is_not_followed(server: ChatServer, tmp_path: Path) -> None:
    with ChatServer(lambda request: "1").running() as elsewhere:
        server.faults = [Fault(status=307, headers={"location": f"{elsewhere.url}/chat/completions"})]
        with pytest.raises(UserError, match="307"):
            Asking(server, tmp_path).ask(question())
        assert elsewhere.requests == []


def test_no_connection_is_passing(server: ChatServer, tmp_path: Path) -> None:
    asking = Asking(server, tmp_path)
    gone = endpoint.Endpoint("http://127.0.0.1:9/v1", "m", KEY)
    remote = Remote(asking.card, gone, max_cost=1.0, pause=lambda s: None)
    with pytest.raises(TransientError, match="no connection"):
        remote.ask([question()], asking.memory)


def test_only_so_many_are_under_way_at_once(server: ChatServer, tmp_path: Path) -> None:
    def slowly(request: dict[str, Any]) -> str:
        time.sleep(0.02)
        return "1"

    server.answer = slowly
    Asking(server, tmp_path, concurrency=3).ask(*[question(str(i)) for i in range(20)])
    assert len(server.requests) == 20
    assert 2 <= server.busiest <= 3


def test_money_stops_when_the_server_counts_more_than_was_estimated(server: ChatServer, tmp_path: Path) -> None:
    asking = Asking(server, tmp_path, concurrency=1, max_cost=0.00055)  # an answer counts as 100 x 2.5e-6 + 1e-5
    with pytest.raises(UserError, match=r"cost \$0\.000[78].*kept"):
        asking.ask(*[question(str(i)) for i in range(20)])
    assert 3 <= len(server.requests) <= 4
    assert len(asking.memory.unknown([question(str(i)) for i in range(20)])) <= 17


def test_what_the_server_does_not_count_is_counted_by_our_estimate(server: ChatServer, tmp_path: Path) -> None:
    """A cap that took a missing count for nothing would never be reached."""
    silent = json.dumps({k: v for k, v in completion("1").items() if k != "usage"}).encode()
    server.faults = [Fault(body=silent) for _ in range(20)]
    one = (16 + 10) * 2.5e-6 + 16 * 10e-6  # a prompt of 30 letters; what it may answer at most
    asking = Asking(server, tmp_path, concurrency=1, max_cost=2.5 * one)
    with pytest.raises(UserError, match=rf"cost \${3 * one:.4f}"):
        asking.ask(*[question(f"{i:030}") for i in range(20)])
    assert 3 <= asking.remote.spent.uncounted == asking.remote.spent.answers <= 4


def test_images_are_sent_in_order_without_what_their_files_say(
    server: ChatServer, tmp_path: Path, made: MadeRun
) -> None:
    images = read_run(made.record, made.store)
    row = images.rows()[0]
    first, second = (images.of(row, place) for place in images.places[:2])
    Asking(server, tmp_path).ask(question("which?", second, first))
    content = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert content[2]["text"] == "which?"
    for part, image in zip(content, (second, first), strict=False):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        sent, stored = (PIL.Image.open(io.BytesIO(d)) for d in (base64.b64decode(data), image.png()))
        assert np.array_equal(np.asarray(sent), np.asarray(stored.convert("RGB")))
    assert "secret prompt" not in json.dumps(server.requests)
    assert row.row_id not in json.dumps(server.requests)


def _chunks(png: bytes) -> list[bytes]:
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + length
    return names


def test_an_encoded_image_holds_pixels_only() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", "secret prompt")
    exif = PIL.Image.Exif()
    exif[0x010E] = "secret description"
    data = io.BytesIO()
    PIL.Image.new("RGBA", (1600, 800), (200, 10, 10, 255)).save(
        data, format="PNG", pnginfo=info, exif=exif, dpi=(300, 300), icc_profile=zlib.compress(b"secret profile")
    )
    assert {b"tEXt", b"eXIf", b"iCCP", b"pHYs"} <= set(_chunks(data.getvalue()))
    sent = endpoint.encode(data.getvalue(), 768)
    assert set(_chunks(sent)) == {b"IHDR", b"IDAT", b"IEND"}
    assert b"secret" not in sent
    with PIL.Image.open(io.BytesIO(sent)) as opened:
        assert (opened.size, opened.mode) == ((768, 384), "RGB")


def test_the_key_is_in_no_log_file_or_message(
    server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults = [Fault(status=500, error={"message": f"internal: {KEY}"}), Fault(status=429)]
    asking = Asking(server, tmp_path)
    asking.ask(question())
    assert caplog.records, "the client logs something at this level"
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    said = capfd.readouterr()
    for text in (caplog.text, said.out, said.err, repr(asking.to), str(asking.remote.identity), written.decode()):
        assert KEY not in text
    assert server.keys == [f"Bearer {KEY}"] * 3


# What happens before anything is sent.


def _tokens_by_hand(width: int, height: int) -> int:
    """OpenAI's worked rule for GPT-4o, high detail."""
    if max(width, height) > 2048:
        width, height = (s * 2048 / max(width, height) for s in (width, height))  # type: ignore[assignment]
    if min(width, height) > 768:
        width, height = (s * 768 / min(width, height) for s in (width, height))  # type: ignore[assignment]
    tiles = -(-round(width) // 512) * -(-round(height) // 512)
    return 85 + 170 * tiles


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((1024, 1024), 765), ((2048, 4096), 1105), ((512, 512), 255), ((32, 32), 255), ((513, 64), 425)],
)
def test_tokens_of_an_image_as_openai_counts_them(size: tuple[int, int], tokens: int) -> None:
    assert CARD.image_tokens is not None
    assert CARD.image_tokens.of(*size) == tokens == _tokens_by_hand(*size)


def test_an_estimate_adds_images_and_words(made: MadeRun) -> None:
    images = read_run(made.record, made.store)
    shown = [images.of(row, images.places[0]) for row in images.rows()]
    questions = [question("x" * 30, image, shown[0]) for image in shown]
    found = endpoint.estimate(CARD, questions, PRICE)
    assert (found.questions, found.images) == (6, 6)
    assert found.input_tokens == 6 * (16 + 10 + 2 * 255)
    assert found.output_tokens == 6 * 16
    assert found.dollars == pytest.approx((found.input_tokens * 2.5 + found.output_tokens * 10) / 1e6)
    assert endpoint.estimate(CARD, questions, None) == found._replace(dollars=None)


@pytest.mark.parametrize(
    ("environ", "known"),
    [
        ({}, True),
        ({"OPENAI_BASE_URL": f"{CARD.source}/", "HARNESS_JUDGE_MODEL": str(CARD.model)}, True),
        ({"HARNESS_JUDGE_MODEL": "some-model"}, False),
        ({"OPENAI_BASE_URL": "https://example.org/v1"}, False),
        ({"OPENAI_BASE_URL": "https://example.org/v1", "HARNESS_JUDGE_MODEL": str(CARD.model)}, False),
    ],
)
def test_the_card_s_price_is_of_its_own_model_at_its_own_address(environ: dict[str, str], known: bool) -> None:
    environ = environ | {"OPENAI_API_KEY": KEY}
    assert endpoint.endpoint(CARD, environ).price == (CARD.price if known else None)
    assert endpoint.endpoint(CARD, environ, PRICE).price == PRICE
    assert "price" not in endpoint.identity(CARD, endpoint.endpoint(CARD, environ, PRICE))


def test_a_cap_that_cannot_be_kept_is_refused() -> None:
    to = endpoint.Endpoint("https://example.org/v1", "some-model", KEY)
    found = endpoint.Estimate(40, 0, 1000, 100, None)
    assert endpoint.check(CARD, to, found, allow_images=False, max_cost=None) == math.inf
    with pytest.raises(UserError, match=r"some-model\) at a price that is not known.*--max-cost 1 .*--price") as raised:
        endpoint.check(CARD, to, found, allow_images=False, max_cost=1)
    assert "\n" not in str(raised.value)


def test_a_cap_holds_though_nobody_asked_for_one() -> None:
    to = endpoint.Endpoint("https://example.org/v1", "some-model", KEY, PRICE)
    found = endpoint.Estimate(40, 0, 1000, 100, 4.99)
    assert endpoint.check(CARD, to, found, allow_images=False, max_cost=None) == 5
    for dollars, cap in ((5.01, None), (5.01, 5.0), (0.01, math.nan)):
        with pytest.raises(UserError, match="more than --max-cost"):
            endpoint.check(CARD, to, found._replace(dollars=dollars), allow_images=False, max_cost=cap)


def test_images_and_cost_need_leave() -> None:
    to = endpoint.Endpoint("https://user:secret@example.org/v1?token=secret", "m", KEY)
    found = endpoint.Estimate(40, 80, 1000, 100, 0.25)
    with pytest.raises(UserError, match=r"40 questions with 80 images to https://example\.org/v1 .*--allow-remote"):
        endpoint.check(CARD, to, found, allow_images=False, max_cost=1)
    with pytest.raises(UserError, match=r"about \$0\.2500, more than --max-cost 0\.2"):
        endpoint.check(CARD, to, found, allow_images=True, max_cost=0.2)
    endpoint.check(CARD, to, found, allow_images=True, max_cost=0.25)
    endpoint.check(CARD, to, found._replace(images=0), allow_images=False, max_cost=0.25)
    assert "secret" not in repr(to) + to.shown


def test_an_endpoint_needs_a_key_unless_it_is_the_user_s_own() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        endpoint.endpoint(CARD, {})
    assert endpoint.endpoint(CARD, {"OPENAI_API_KEY": f"{KEY}\n"}).key == KEY
    assert endpoint.endpoint(CARD, {"OPENAI_BASE_URL": "http://localhost:8000/v1/"}).url == "http://localhost:8000/v1"
    with pytest.raises(UserError, match="no http"):
        endpoint.endpoint(CARD, {"OPENAI_BASE_URL": "localhost:8000"})
    with pytest.raises(UserError, match="characters"):
        endpoint.endpoint(CARD, {"OPENAI_API_KEY": "sk-\u00e9"})
