"""What is said of words that other tools use, and help that can be read and copied on a narrow terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.load import load_card
from harness.cli import app, hints, main
from harness.errors import UserError, nearest

WORDS = "defense bench profile regen backbone limit out store num-gpus workers help"
EVAL = [f"--{name}" for name in WORDS.split()]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--tasks", "did you mean --bench?"),
        ("--task", "did you mean --bench?"),
        ("--datasets", "did you mean --bench?"),
        ("--benchmark", "did you mean --bench?"),
        ("--model", "did you mean --backbone?"),
        ("--checkpoint", "did you mean --backbone?"),
        ("--method", "did you mean --defense?"),
        ("--steps", "--backbone NAME:steps=N, such as sd-1-4:steps=25"),
        ("--num_inference_steps", "--backbone NAME:steps=N"),
        ("--cfg-scale", "--backbone NAME:guidance=G"),
        ("--alpha", "--regen resafe:alpha=0.5"),
        ("--batch-size", "--backbone NAME:micro_batch=N"),
        ("--gpus", "did you mean --num-gpus?"),
        ("--num-samples", "did you mean --limit?"),
        ("--output_dir", "did you mean --out?"),
        ("--resume", "the same command again"),
        ("--threshold", "--curve"),
        ("--num_gpus", "did you mean --num-gpus?"),
        ("--limti", "did you mean --limit?"),
        ("--bnech", "did you mean --bench?"),
        ("--zzz", ""),
    ],
)
def test_what_people_mean_by_an_option(typed: str, said: str) -> None:
    hint = hints.of_option(typed, EVAL)
    assert said in hint
    assert bool(said) == bool(hint)
    assert "--help" not in hint


def test_an_option_is_not_hinted_at_where_the_command_lacks_it() -> None:
    assert hints.of_option("--tasks", ["--store", "--help"]) == ""


@pytest.mark.parametrize(
    ("typed", "command"),
    [("run", "eval"), ("evaluate", "eval"), ("show", "describe"), ("download", "fetch"), ("evla", "eval")],
)
def test_what_people_mean_by_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, command: str
) -> None:
    assert call(monkeypatch, typed) == 2
    said = capsys.readouterr().err
    assert f"no command {typed!r}; did you mean `{command}`?" in said
    assert said.count("\n") == 1


def test_an_unknown_option_of_a_command_says_what_is_meant_and_where_to_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "eval", "--model", "sd-1-4") == 2
    assert capsys.readouterr().err.startswith("harness: no option --model; did you mean --backbone?; see `")


@pytest.mark.parametrize("name", ["trasce", "AdvUnlearn", "adv-unlearn", "erase_diff", "SPM", "concept-steerers"])
def test_a_published_defense_without_a_card_is_said_to_be_one(name: str) -> None:
    with pytest.raises(UserError, match="is a published defense that has no card here") as error:
        load_card(DefenseCard, name, card_roots())
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (DefenseCard, "sld", "did you mean 'sld-max' or 'sld-medium' or 'sld-strong'?"),
        (DefenseCard, "sd-1-4", "which is a backbone"),
        (DefenseCard, "resafe", "which is a regenerator"),
        (BenchmarkCard, "rece", "which is a defense"),
        (BenchmarkCard, "ring-a-bell", "'ring-a-bell-k16'"),
        (DefenseCard, "reec", "did you mean 'rece'?"),
    ],
)
def test_an_unknown_name_is_told_by_what_it_may_mean(kind: type[Any], name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_card(kind, name, card_roots())
    assert said in str(error.value)


def test_a_name_is_no_family_of_itself() -> None:
    assert nearest("resafe", ["resafe", "resafe-image-only"]) == "; did you mean 'resafe'?"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    nested = getattr(command, "commands", {})
    if not nested:
        yield path, command
    for name, one in nested.items():
        yield from commands(one, (*path, name))


def test_help_is_whole_at_eighty_columns_and_its_examples_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in commands(typer.main.get_command(app)):
        call(monkeypatch, *path, "--help")
        shown = capsys.readouterr().out
        assert "…" not in shown, path
        examples = [line for line in command.epilog.splitlines() if line.startswith("  harness ")]
        assert examples, path
        assert set(examples) <= {line.removeprefix("  ") for line in shown.splitlines()} | set(shown.splitlines()), path
        for option in command.params:
            for name in (*option.opts, *option.secondary_opts):
                assert not name.startswith("--") or name in shown, (path, name)


def test_the_program_s_help_holds_its_command_unbroken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    call(monkeypatch, "--help")
    assert "harness eval --defense rece --bench ring-a-bell-k77 --profile shapes" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("table1", "--profile", "shapes", "--to"), ("audit", "--curve", "--to")])
@pytest.mark.parametrize("to", ["/proc/x", "file/below", "."])
def test_a_target_that_cannot_be_written_is_one_line_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    to: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if to == "." and "--curve" in words:
        to = "file"  # of curves it is a folder
    assert call(monkeypatch, "report", *words, to) == 2
    assert f"harness: --to {to}" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
