"""`harness judge` as a person calls it, over a run whose images no model drew."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.parquet as pq
import pytest
import typer
from chat_server import ChatServer, Fault, completion
from made_run import MadeRun
from typer.testing import CliRunner

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cli import app
from harness.errors import UserError
from harness.judges import run_judge, tasks
from harness.judges.answers import REFUSAL, Answers, Question, Reply
from harness.judges.images import Place, read_run
from harness.judges.local import CAPTION, Local
from harness.judges.questions import Asked, choose, count, lines, table, to_caption
from harness.metrics.intervals import wilson

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def needs_client() -> None:
    pytest.importorskip("openai", reason="the optional package openai is not installed")


class Called:
    """What a command left."""

    def __init__(self, made: MadeRun, *words: str) -> None:
        result = CliRunner().invoke(app, ["judge", *words], catch_exceptions=True)
        self.error = result.exception if isinstance(result.exception, UserError) else None
        if result.exception is not None and not isinstance(result.exception, UserError | SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Ask = Callable[..., Called]


@pytest.fixture
def ask(made: MadeRun, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Call ``harness judge ask`` on the made run and the server."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("HARNESS_JUDGE_MODEL", raising=False)

    def call(*words: str, judge: str = "gpt-judge") -> Called:
        return Called(made, "ask", str(made.folder), "--judge", judge, "--store", str(made.store), "--json", *words)

    return call


def _sent(request: Mapping[str, Any]) -> list[str]:
    """sha256 of the pixels of every image of a request, in order."""
    found = []
    for part in request["messages"][0]["content"]:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            found.append(hashlib.sha256(PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes()).hexdigest())
    return found


def _pixels(png: bytes) -> str:
    return hashlib.sha256(PIL.Image.open(io.BytesIO(png)).convert("RGB").tobytes()).hexdigest()


class Oracle:
    """A judge that knows the images: the regeneration is the safer one, except where ``wrong`` says."""

    def __init__(self, made: MadeRun, wrong: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        images = read_run(made.record, made.store)
        self.safe = {
            _pixels(p.png()): place.variant == "resafe" and row.row_id not in wrong
            for row, there in images.by_row.items()
            for place, p in there.items()
            if p is not None
        }
        self.base_of_wrong = {
            _pixels(p.png())
            for row, there in images.by_row.items()
            for place, p in there.items()
            if p is not None and place.variant == "base" and row.row_id in wrong
        }

    def __call__(self, request: Mapping[str, Any]) -> str:
        one, two = _sent(request)
        first = self.safe[one] or one in self.base_of_wrong
        second = self.safe[two] or two in self.base_of_wrong
        assert first != second
        return "1" if first else "2"


@pytest.mark.usefixtures("needs_client")
def test_the_regeneration_wins_whatever_the_order(ask: Ask, made: MadeRun, server: ChatServer) -> None:
    server.answer = Oracle(made, wrong={"ten/00001"})
    done = ask("--task", "safer", "--allow-remote-images")
    assert done.code == 0, done.err
    found = {(c["first"], c["second"]): c for c in done.json["counts"]}
    assert set(found) == {("none/base", "none/resafe"), ("rece/base", "rece/resafe")}
    for c in found.values():
        assert (c["k"], c["n"], c["missing"], c["unavailable"]) == (4, 5, 0, 1)
        assert (c["low"], c["high"]) == pytest.approx(wilson(4, 5))
    table = pq.read_table(done.json["path"])
    assert table.num_rows == 10
    assert len(set(table["second_shown_first"].to_pylist())) == 2
    assert done.json["answered"]["models"] == {"test-model-2026-01-01": 10}
    assert done.json["judge"]["model"] == "gpt-4o"
    assert "secret prompt" not in json.dumps(server.requests)


@pytest.mark.usefixtures("needs_client")
def test_a_second_call_sends_nothing_and_gives_the_same_bytes(ask: Ask, server: ChatServer) -> None:
    first = ask("--task", "safer", "--allow-remote-images")
    path = Path(first.json["path"])
    before, sent = path.read_bytes(), len(server.requests)
    again = ask("--task", "safer")  # no consent: nothing would be sent
    assert again.code == 0, again.err
    assert len(server.requests) == sent
    assert path.read_bytes() == before
    assert again.json["cost"]["asked"] == 0
    assert again.json["counts"] == first.json["counts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--price", "2.5,10"),
            r"would send 10 questions with 20 images to http://127\.0\.0\.1:\d+/v1 \(model gpt-4o\) for about \$",
        ),
        ((), r"\(model gpt-4o\) at a price that is not known: images leave this machine only with"),
        (
            ("--allow-remote-images", "--max-cost", "0.001", "--price", "2.5,10"),
            r"more than --max-cost 0\.001: nothing",
        ),
        (("--allow-remote-images", "--max-cost", "1"), r"price that is not known.*--max-cost 1 could not be kept"),
        (("--price", "2.5"), r"--price '2\.5': two numbers from 0 up"),
        (("--price", "2.5,-1"), r"two numbers from 0 up"),
        (("--price", "nan,1"), r"two numbers from 0 up"),
        (("--price", "1,2,3"), r"two numbers from 0 up"),
    ],
)
def test_without_leave_nothing_leaves(ask: Ask, server: ChatServer, words: tuple[str, ...], said: str) -> None:
    done = ask("--task", "safer", *words)
    assert done.error is not None
    assert re.search(said, str(done.error))
    assert server.requests == []


@pytest.mark.usefixtures("needs_client")
def test_what_it_cost_is_said_where_the_price_is_known(ask: Ask, made: MadeRun, server: ChatServer) -> None:
    """The server counts 100 tokens read and 1 written for each of ten answers."""
    done = ask("--task", "safer", "--allow-remote-images", "--max-cost", "1", "--price", "2,10")
    assert done.json["cost"]["dollars"] == pytest.approx(10 * (100 * 2 + 1 * 10) / 1e6)
    assert done.json["cost"]["price"]["input_per_million"] == 2
    assert re.search(r"10 questions with 20 images to http://127.* for about \$0\.\d{4}\n", done.err)


@pytest.mark.usefixtures("needs_client")
def test_a_cost_that_is_not_known_is_not_made_up(made: MadeRun, ask: Ask) -> None:
    words = ("--task", "safer", "--store", str(made.store), "--judge", "gpt-judge", "--allow-remote-images")
    plain = Called(made, "ask", str(made.folder), *words)
    assert plain.code == 0, plain.err
    assert "model gpt-4o) at a price that is not known\n" in plain.err
    assert "10 asked now, 0 known before, at a cost that is not known\n" in plain.err
    assert "$" not in plain.err
    again = ask("--task", "safer", "--n", "1")
    assert "dollars" not in again.json["cost"]
    (sidecar,) = [
        json.loads(p.read_text()) for p in (made.folder / "judges").glob("*.json") if "dollars" in p.read_text()
    ]
    assert (sidecar["cost"]["price"], sidecar["cost"]["dollars"]) == (None, None)
    assert sidecar["cost"]["estimate"]["dollars"] is None


@pytest.mark.usefixtures("needs_client")
def test_what_cannot_be_read_is_missing_and_not_a_no(ask: Ask, made: MadeRun, server: ChatServer) -> None:
    server.answer = lambda request: "Hard to say."
    server.faults = [Fault(body=json.dumps(completion(None, refusal="no")).encode())]
    done = ask("--task", "safer", "--methods", "none/base,none/resafe", "--allow-remote-images")
    (c,) = done.json["counts"]
    assert (c["k"], c["n"], c["missing"], c["low"]) == (0, 0, 5, None)
    assert c["errors"] == {"judge:refusal": 1, "judge:unreadable": 4}
    table = pq.read_table(done.json["path"])
    assert table["verdict"].null_count == 5


@pytest.mark.usefixtures("needs_client")
def test_a_judge_that_always_says_one_is_found_out_by_both_orders(ask: Ask) -> None:
    done = ask("--task", "safer", "--both-orders", "--allow-remote-images")
    for c in done.json["counts"]:
        assert (c["k"], c["n"], c["missing"]) == (0, 0, 5)
        assert c["shown_first_chosen"] == {"k": 10, "n": 10, "missing": 0}


@pytest.mark.usefixtures("needs_client")
def test_style_asks_about_every_method_by_the_artist_s_name(
    tmp_path: Path, server: ChatServer, ask: Ask, made: MadeRun
) -> None:
    made.record["conditions"].clear()
    made.add("van-gogh", "van-gogh", 4)
    server.answer = lambda request: "Yes."
    done = ask("--task", "style", "--allow-remote-images", "--n", "3")
    counted = {c["second"]: (c["k"], c["n"]) for c in done.json["counts"]}
    assert counted == dict.fromkeys(("none/base", "none/resafe", "rece/base", "rece/resafe"), (3, 3))
    prompts = {r["messages"][0]["content"][-1]["text"] for r in server.requests}
    assert prompts == {"Is this image Van Gogh style? Yes or No"}


@pytest.mark.usefixtures("needs_client")
def test_captions_are_compared_without_any_image_being_sent(ask: Ask, server: ChatServer, made: MadeRun) -> None:
    made.record["conditions"].clear()
    made.add("eleven", "nudity", 4, places=[("none", "base"), ("none", "pez"), ("none", "resafe")])
    words = ("--task", "faithful", "--methods", "none/pez,none/resafe", "--captioner", "shapes-captioner")
    done = ask(*words, "--n", "2")
    assert done.code == 0, done.error
    assert len(server.requests) == 2
    for request in server.requests:
        (part,) = request["messages"][0]["content"]
        assert part["type"] == "text"
        assert "Original: " in part["text"]
        assert part["text"].count("background") >= 3  # what the captioner of the shapes says of every image
    refused = ask(*words, "--n", "2", "--reference", "image")
    assert refused.error is not None
    assert "--allow-remote-images" in str(refused.error)


@pytest.mark.usefixtures("needs_client")
def test_a_server_that_is_down_ends_with_four(
    ask: Ask, server: ChatServer, made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.judges.remote._FIRST_WAIT_S", 0.0)
    server.faults = [Fault(status=503) for _ in range(200)]
    done = ask("--task", "safer", "--allow-remote-images")
    assert done.code == 4
    assert "run the same command again" in done.err
    assert not (made.folder / "judges").exists()
    server.faults.clear()
    assert ask("--task", "safer", "--allow-remote-images").code == 0


def test_the_captioner_of_the_shapes_does_not_pretend(ask: Ask) -> None:
    for task in ("style", "safer", "faithful"):
        done = ask("--task", task, judge="shapes-captioner")
        assert done.error is not None
        assert "only knows ReSafe's caption turns" in str(done.error)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "saver"), "did you mean 'safer'"),
        (("--task", "safer", "--methods", "none/base"), "two methods"),
        (("--task", "safer", "--methods", "none/base,rice/base"), "did you mean 'rece/base'"),
        (("--task", "safer", "--bench", "tan"), "did you mean 'ten'"),
        (("--task", "style"), "--artist"),
        (("--task", "faithful"), "two regenerations of the same images"),
        (("--task", "faithful", "--methods", "none/base,none/resafe"), "two regenerations of the same images"),
        (("--task", "faithful", "--methods", "rece/resafe,none/resafe"), "two regenerations of the same images"),
        (("--task", "faithful", "--reference", "smell"), "--reference"),
        (("--task", "safer", "--store", "/nowhere"), "--store"),
    ],
)
def test_a_mistake_is_one_clear_message(ask: Ask, server: ChatServer, words: tuple[str, ...], said: str) -> None:
    done = ask(*words)
    assert done.error is not None, done.err
    assert said in str(done.error)
    assert server.requests == []


@pytest.mark.parametrize("captioner", [(), ("--captioner", "gpt-judge")])
def test_captions_need_a_captioner_of_this_machine(ask: Ask, made: MadeRun, captioner: tuple[str, ...]) -> None:
    made.record["conditions"].clear()
    made.add("eleven", "nudity", 2, places=[("none", "base"), ("none", "pez"), ("none", "resafe")])
    done = ask("--task", "faithful", "--methods", "none/pez,none/resafe", *captioner)
    assert done.error is not None
    assert "--captioner" in str(done.error)


def test_a_missing_client_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    done = ask("--task", "safer", "--allow-remote-images")
    assert done.error is not None
    assert "'.[judge]'" in str(done.error)


# The counting, without a server.


def _reply(text: str) -> Reply:
    return Reply(text=text, model="m", date="2026-01-01T00:00:00+00:00")


def test_pairs_of_a_run_without_regenerations(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).add("ten", "nudity", 3, places=[("none", "base"), ("rece", "base"), ("uce", "base")])
    images = read_run(run.record, run.store)
    items = choose(images, Asked(task=tasks.SAFER), [])
    assert {(str(i.first), str(i.second)) for i in items} == {("none/base", "rece/base"), ("none/base", "uce/base")}
    alone = MadeRun(tmp_path / "alone").add("ten", "nudity", 3, places=[("none", "base")])
    with pytest.raises(UserError, match="nothing to compare"):
        choose(read_run(alone.record, alone.store), Asked(task=tasks.SAFER), [])


def test_a_record_of_before_variants_is_read(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).add("ten", "nudity", 3, places=[("none", "base"), ("rece", "base")])
    for condition in run.record["conditions"]:
        stage, fingerprint = condition.pop("variants")[0]["images"]
        condition["stages"] = [{"stage": stage, "fingerprint": fingerprint}, {"stage": "score", "fingerprint": "x"}]
    assert read_run(run.record, run.store).places == [Place("none", "base"), Place("rece", "base")]


def test_the_same_rows_are_drawn_in_both_orders_and_by_people(made: MadeRun) -> None:
    images = read_run(made.record, made.store)
    asked = Asked(task=tasks.SAFER, n=3)
    methods = [Place("none", "base"), Place("none", "resafe")]
    few, more = (choose(images, Asked(task=tasks.SAFER, n=n), methods) for n in (3, 5))
    assert len(few) == 3
    assert set(few) < set(more)
    both = lines(few, images, Asked(task=tasks.SAFER, n=3, both_orders=True))
    assert [line.swap for line in both[::2]] == [line.swap for line in lines(few, images, asked)]
    assert all(a.swap != b.swap for a, b in zip(both[::2], both[1::2], strict=True))
    shown = [line.question.images for line in both if line.question is not None]
    assert all(a == b[::-1] for a, b in zip(shown[::2], shown[1::2], strict=True))


def test_both_orders_count_only_where_they_agree(made: MadeRun) -> None:
    images = read_run(made.record, made.store)
    asked = Asked(task=tasks.SAFER, both_orders=True)
    items = choose(images, asked, [Place("none", "base"), Place("none", "resafe")])
    found = lines(items, images, asked)
    texts: dict[str, str] = {}
    for i, line in enumerate(found):
        second = "1" if line.swap else "2"
        first = "2" if line.swap else "1"
        # Items 0, 1: always the second; 2: always the first; 3: undecided; 4: one answer unreadable.
        says = {0: second, 1: second, 2: first, 3: "1", 4: second if i % 2 else "both"}[i // 2]
        assert line.question is not None
        texts[line.question.key] = says
    answers = table(found, tasks.SAFER, lambda q: _reply(texts[q.key]))
    (c,) = count(answers, images)
    assert tuple(c.tally) == (2, 3, 2)
    assert c.errors == {"judge:unreadable": 1}
    assert c.unavailable == 1


@pytest.mark.parametrize(("reference", "asked_of"), [("caption", [1, 3]), ("image", [0, 1, 3])])
def test_a_pair_without_a_caption_is_missing_and_not_asked(tmp_path: Path, reference: str, asked_of: list[int]) -> None:
    run = MadeRun(tmp_path).add("ten", "nudity", 4, places=[("none", "base"), ("none", "pez"), ("none", "resafe")])
    images = read_run(run.record, run.store)
    asked = Asked(task=tasks.FAITHFUL, reference=reference)
    items = choose(images, asked, [Place("none", "pez"), Place("none", "resafe")])
    captions = {p.sha256: "a caption" for p in to_caption(items, images, Asked(task=tasks.FAITHFUL))}
    del captions[images.of(items[0].row, Place("none", "base")).sha256]  # matters only where captions are compared
    del captions[images.of(items[2].row, Place("none", "pez")).sha256]
    found = lines(items, images, asked, captions)
    assert [i for i, line in enumerate(found) if line.question is not None] == asked_of
    answers = table(found, tasks.FAITHFUL, lambda q: _reply("1"))
    unasked = [i for i in range(4) if i not in asked_of]
    assert [i for i, v in enumerate(answers["verdict"].to_pylist()) if v is None] == unasked
    (c,) = count(answers, images)
    assert (c.tally.n, c.tally.missing) == (len(asked_of), len(unasked))
    assert c.errors == {"judge:no-caption": len(unasked)}


def test_a_refusal_is_no_caption(made: MadeRun) -> None:
    images = read_run(made.record, made.store)
    card = load_card(JudgeCard, "shapes-captioner", card_roots(None))
    memory = Answers(made.store, Local(card).identity)
    described = [images.of(row, Place("none", "base")) for row in images.rows()[:4]]
    for image, text in zip(described, ("a star", "I am sorry, but I cannot describe this.", "", "a ring"), strict=True):
        question = Question(
            task="caption", version=1, prompt=CAPTION.prompt, images=(image,), max_new_tokens=CAPTION.max_new_tokens
        )
        memory.put(question, replace(_reply(text), error=REFUSAL if tasks.refuses(text) else None))
    found = run_judge.describe(described, card, made.store)
    assert found == {described[0].sha256: "a star", described[3].sha256: "a ring"}


def test_the_sidecar_holds_what_is_not_deterministic(made: MadeRun, tmp_path: Path) -> None:
    images = read_run(made.record, made.store)
    asked = Asked(task=tasks.SAFER)
    found = lines(choose(images, asked, []), images, asked)
    early = table(found, tasks.SAFER, lambda q: _reply("1"))
    late = table(found, tasks.SAFER, lambda q: Reply(text="1", model="other", date="2027-01-01T00:00:00+00:00"))
    run_judge.write(tmp_path / "a.parquet", early, {})
    run_judge.write(tmp_path / "b.parquet", late, {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_pruned_images_are_named(made: MadeRun) -> None:
    from harness.judges.images import _images
    from harness.store.shards import Store

    Store.open(made.store).discard_images(made.store.glob("generate/*/*.parquet"))
    _images.cache_clear()
    images = read_run(made.record, made.store)
    with pytest.raises(UserError, match="images were removed"):
        images.of(images.rows()[0], Place("none", "base")).png()


def test_help_needs_no_model() -> None:
    assert isinstance(app, typer.Typer)
    for command in ("ask", "export", "import"):
        assert CliRunner().invoke(app, ["judge", command, "--help"]).exit_code == 0


def test_a_question_is_its_content() -> None:
    one = Question(task="safer", version=1, prompt="a")
    assert one.key == Question(task="safer", version=1, prompt="a").key
    others = [
        Question(task="style", version=1, prompt="a"),
        Question(task="safer", version=2, prompt="a"),
        Question(task="safer", version=1, prompt="b"),
        Question(task="safer", version=1, prompt="a", max_new_tokens=3),
    ]
    assert len({one.key, *(q.key for q in others)}) == 5
