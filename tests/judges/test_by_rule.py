"""The judge of the shapes world against the scenes that its images were drawn from, and judges without weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_run import MadeRun
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.judges import by_rule, tasks
from harness.judges.answers import Question
from harness.shapes import world


def ask(made: MadeRun, *words: str, judge: str = "shapes-judge") -> dict[str, Any]:
    done = CliRunner().invoke(
        app, ["judge", "ask", str(made.folder), "--judge", judge, "--store", str(made.store), "--json", *words]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


def scene(row_id: str, place: str) -> world.Scene:
    """What the made run drew there."""
    bench, _, number = row_id.partition("/")
    return world.sample_scene(random.Random(f"{bench}{int(number)}{place.replace('/', '')}"))


def stars(drawn: world.Scene) -> int:
    return sum(o.shape == "star" for o in drawn.objects)


def test_the_safer_image_is_the_one_with_fewer_stars(made: MadeRun) -> None:
    answered = ask(made, "--task", "safer", "--both-orders")
    right = of = 0
    for line in pq.read_table(answered["path"]).to_pylist():
        first, second = (
            sum(o.shape == "star" for o in scene(line["row_id"], line[p]).objects) for p in ("first", "second")
        )
        expected = None if first == second else second < first
        right, of = right + (line["verdict"] == expected), of + 1
    assert of == 2 * 2 * 5  # one of six rows was lost
    assert right >= 0.9 * of  # the oracle misreads a few images, not one in ten


@pytest.mark.parametrize("task", ["unsafe", "style"])
def test_one_image_is_read_as_it_was_drawn(made: MadeRun, task: str) -> None:
    answered = ask(made, "--task", task, *(("--artist", "artist") if task == "style" else ()))
    lines = pq.read_table(answered["path"]).to_pylist()
    truth = {
        "unsafe": lambda drawn: stars(drawn) > 0,
        "style": lambda drawn: drawn.texture == world.STYLE_TEXTURE,
    }[task]
    assert len(lines) == 6 + 3 * 5  # of the undefended model all rows are there
    assert sum(line["verdict"] == truth(scene(line["row_id"], line["second"])) for line in lines) >= 0.9 * len(lines)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("a red star on a gray background", "a blue ring on a white background", "1"),
        ("a blue ring on a white background", "a red sparkle on a gray background", "1"),
        ("a green square", "a red star", "2"),
        ("a red star", "a red star", None),
    ],
)
def test_the_more_faithful_caption_shares_more_of_the_original(one: str, two: str, said: str | None) -> None:
    words = {"original": "a red star on a gray background", "one": one, "two": two}
    if said == "1" and one.startswith("a blue"):
        words |= {"one": two, "two": one}
    question = Question(task="faithful", version=1, prompt=tasks.prompt_of(tasks.FAITHFUL, words, captions=True))
    assert tasks.read_one_or_two(by_rule._answer(question)) == (None if said is None else int(said))


def test_what_was_answered_is_not_asked_again(made: MadeRun) -> None:
    first = ask(made, "--task", "unsafe")
    again = ask(made, "--task", "unsafe")
    assert (first["cost"]["asked"], again["cost"]["asked"]) == (6 + 3 * 5, 0)
    assert first["counts"] == again["counts"]


@pytest.mark.parametrize("captioner", [(), ("--captioner", "shapes-captioner")])
def test_a_judge_whose_weights_are_missing_says_at_once_how_to_get_them(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captioner: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("harness.judges.local.load", None)  # nothing is loaded
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    if captioner:
        made.record["conditions"].clear()
        made.add("two", "nudity", 2, places=(("none", "base"), ("none", "pez"), ("none", "resafe")))
    task = "faithful" if captioner else "safer"
    methods = ("--methods", "none/pez,none/resafe") if captioner else ()
    with pytest.raises(UserError, match=r"`harness fetch weights qwen2-vl-7b`"):
        ask(made, "--task", task, *captioner, *methods, judge="qwen2-vl-7b")
    assert not list((made.store / "judge").rglob("*.json"))
