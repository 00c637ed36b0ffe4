"""An option given twice, of every command: lists accumulate, all else is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from harness.cli import app, main
from harness.cli.repeated import LISTS

PLAN = ("plan", "--profile", "shapes", "--json", "--num-gpus", "0")


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    nested = getattr(command, "commands", None)
    if nested is None:
        yield words, command
        return
    for name, one in nested.items():
        yield from _commands(one, (*words, name))


OPTIONS = [
    pytest.param(words, option, id=" ".join((*words, option.opts[0])))
    for words, command in _commands(typer.main.get_command(app))
    for option in command.params
    if option.param_type_name == "option" and option.name != "help"
]


def _call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_every_option_given_twice_is_refused_or_is_a_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], option: Any
) -> None:
    """Of each name that it has, and of both sides of a switch."""
    names = [*option.opts, *option.secondary_opts]
    if option.name in LISTS or option.multiple:
        assert not option.is_flag
        return
    value = [] if option.is_flag else ["3"]
    for second in names:
        code = _call(monkeypatch, *words, names[0], *value, second, *value)
        shown = capsys.readouterr()
        assert code == 2
        assert shown.err.startswith("harness: --")
        assert "is given 2 times" in shown.err
        assert shown.out == ""


def test_lists_are_what_the_help_calls_so() -> None:
    found = {p.values[1].name for p in OPTIONS if "comma separated" in (p.values[1].help or "")}
    assert found | {"methods"} == LISTS


def test_what_lists_name_twice_is_all_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PLAN, "--defense", "none", "-d", "uce,rece", "--bench", "ring-a-bell-k77", "--regen", "none")
    words += ("--ids", "3", "--ids", "5", "--no-baseline")
    assert _call(monkeypatch, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(stage["defense"] for stage in found["stages"])) == ["none", "uce", "rece"]
    assert found["rows"] == 3 * 2


def test_one_option_given_once_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PLAN, "--defense", "none", "--bench", "ring-a-bell-k77", "--regen", "none", "--limit", "2")
    assert _call(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
