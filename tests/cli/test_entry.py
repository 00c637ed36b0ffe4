"""The program's entry: what a mistake looks like, and what is left of a command whose reader went away."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.cli import main

PLAN = ("plan", "--defense", "rece", "--bench", "i2p", "--profile", "shapes")


def _call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evl",), "'evl'"),
        (("eval",), "--defense"),
        ((*PLAN, "--limt", "3"), "--limt"),
        ((*PLAN, "--limit", "x"), "--limit"),
        ((*PLAN, "--limit", "0"), "--limit 0"),
        ((*PLAN, "--seed", "-1"), "--seed"),
        ((*PLAN, "--seed", str(2**63)), "--seed"),
        (("regen", "--images", ".", "--concept", "nudity", "--seed", str(2**64)), "--seed"),
        ((*PLAN, "--ids", ""), "--ids '' names nothing"),
        ((*PLAN, "--category", ","), "--category ',' names nothing"),
        ((*PLAN, "--regen", " "), "--regen ' ' names nothing"),
        (("list", "defences"), "did you mean 'defenses'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert _call(monkeypatch, *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("harness: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_a_mistake_of_form_says_where_to_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _call(monkeypatch, "store", "prune", "--imges")
    assert capsys.readouterr().err.endswith(" store prune --help`\n")


def test_a_group_without_a_command_shows_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _call(monkeypatch, "store")
    shown = capsys.readouterr()
    assert "prune" in shown.out + shown.err
    assert "harness: \n" not in shown.err


def test_the_largest_seed_leaves_room_for_further_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PLAN, "--limit", "1", "--regen", "none", "--seed", str(2**63 - 1))
    assert _call(monkeypatch, *words) == 0
    assert "generate" in capsys.readouterr().out


def test_what_is_named_twice_counts_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for bench in ("i2p", "i2p,i2p"):
        words = ("--defense", "none", "--bench", bench, "--profile", "shapes", "--limit", "1", "--regen", "none")
        assert _call(monkeypatch, "plan", *words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(("words", "code"), [(("list",), 0), (("--help",), 0), (("list", "defences"), 2)])
def test_a_command_whose_reader_leaves_keeps_its_exit_code(words: tuple[str, ...], code: int) -> None:
    """`harness ... 2>&1 | head`: neither a traceback nor the code of a failed stage."""
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.wait(timeout=300) == code


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("words", [("eval", "--help"), ("describe", "resafe"), ("describe", "rece\udcff")])
def test_a_terminal_that_cannot_show_every_sign_is_no_failure(encoding: str, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == (2 if "\udcff" in words[-1] else 0)
