"""Every command that the documentation shows: its words are parsed, and those of the shapes profile run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.repeated import watch
from harness.scorers import columns
from harness.store.schema import IMAGE, LINEAGE

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?: {4}|\t)(?:\w+=\S+ )*(harness [^\n]*?)(?:\s+#.*)?$", re.MULTILINE)
# Commands of the shapes profile that are not run, and why.
NOT_RUN = {
    "harness build all": "trains every defense for every concept: hours",
    "uce-gentle": "the card that it names is written by the reader, a few lines above",
    "--cards my-cards": "so are these",
    "deaf": "so is this package; tests/pipeline/conformance/test_outside_package.py installs and runs it",
}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every line of code that is a call of the program, without its comment."""
    for page in PAGES:
        for match in COMMAND.finditer((ROOT / page).read_text(encoding="utf-8")):
            yield page, match[1].strip()


def parsed(command: str) -> tuple[Any, dict[str, Any]]:
    """The click command that a line calls and the values of its parameters; nothing is run."""
    words = shlex.split(command)[1:]
    target: Any = watch(typer.main.get_command(app))
    while nested := getattr(target, "commands", None):
        target = nested[words.pop(0)]
    context = target.make_context(target.name, words, resilient_parsing=False)
    return target, context.params


ALL = list(dict.fromkeys(commands()))
OF_SHAPES = list(dict.fromkeys(c for _, c in ALL if "--profile shapes" in c and not any(why in c for why in NOT_RUN)))


def test_there_are_commands() -> None:
    assert len(ALL) > 40
    assert len(OF_SHAPES) > 8


@pytest.mark.parametrize(("page", "command"), ALL)
def test_a_shown_command_is_one(page: str, command: str) -> None:
    assert "<" not in command, f"{page}: a shell takes it for a redirection"
    parsed(command)


@pytest.mark.parametrize("command", [c for c in OF_SHAPES if c.split()[1] in ("eval", "plan")])
def test_what_an_eval_of_the_shapes_profile_names_can_be_planned(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    done = CliRunner().invoke(
        app, [*words, *(["--dry-run"] if words[0] == "eval" else []), "--num-gpus", "0", "--json"]
    )
    assert done.exception is None, done.exception
    assert json.loads(done.stdout)["missing"] == []


@pytest.mark.slow
def test_the_commands_of_the_shapes_profile_run_as_printed(tmp_path: Path) -> None:
    """In their order, in one folder: what is shown later finds the runs of what was shown before."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/harness"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m harness "$@"\n')
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    for command in OF_SHAPES:
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=5400,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


def test_the_columns_of_scores_are_those_that_are_documented() -> None:
    page = (ROOT / "docs/scores.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", page, re.MULTILINE)
    fields = [f for f in (*IMAGE, *LINEAGE) if f.name != "image"]
    kinds = {"list<item: string>": "list of string", "list<element: string>": "list of string"}
    assert rows == [(f.name, kinds.get(str(f.type), str(f.type))) for f in fields]
    for column in re.findall(r"`((?:nudenet|shapes_classifier)_\w+)`", page):
        stem = next(s for s in ("shapes_classifier", "nudenet") if column.startswith(s))
        assert column in columns(stem)


def test_every_extra_that_is_named_is_there_and_no_package_index_is_asked_for_the_project() -> None:
    import tomllib

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    sources = [*(ROOT / page for page in PAGES), *(ROOT / "harness").rglob("*.py")]
    named = [n for path in sources for n in re.findall(r"pip install '([^']+)'", path.read_text(encoding="utf-8"))]
    of_the_project = [n for n in named if n.startswith((".", "FILE.whl")) or "t2i" in n]
    assert of_the_project
    for requirement in of_the_project:
        place, _, names = requirement.rstrip("]").partition("[")
        assert place in (".", "FILE.whl"), requirement
        assert {name.strip() for name in names.split(",")} <= extras
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{extra}`" in readme for extra in extras)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clone", "wheel"])
def test_an_extra_installs_from_a_clone_and_from_a_wheel(tmp_path: Path, kind: str) -> None:
    """Without what the project already has here: pip resolves the extra's own requirements."""
    source = str(ROOT)
    if kind == "wheel":
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
        (wheel,) = tmp_path.glob("*.whl")
        source = str(wheel)
    report = tmp_path / "report.json"
    install = ["install", "--dry-run", "--quiet", "--no-build-isolation", "--report", str(report), f"{source}[judge]"]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True, timeout=600)
    wanted = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert "t2i-safety-harness" in wanted
