"""CI and the nightly call what exists: make targets, scripts, and pinned actions."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKE = (ROOT / "Makefile").read_text()
TARGETS = {name for line in re.findall(r"(?m)^((?:[a-z-]+ ?)+):(?!=)", MAKE) for name in line.split()}


def _jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}:{name}", job)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text())["jobs"].items()
    ]


@pytest.mark.parametrize(("name", "job"), _jobs())
def test_a_job_calls_targets_and_scripts_that_exist(name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 240
    matrix: dict[str, list[str]] = job.get("strategy", {}).get("matrix", {})
    called = [step["run"] for step in job["steps"] if "run" in step]
    assert called
    for command in called:
        variants = [command]
        for key, values in matrix.items():
            variants = [v.replace(f"${{{{ matrix.{key} }}}}", value) for v in variants for value in values]
        for text in variants:
            assert "${{" not in text
            program, *words = text.split()
            if program == "make":
                assert words[0] in TARGETS, text
            elif not program.startswith(".venv/"):
                assert os.access(ROOT / program, os.X_OK), text
    assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)


def test_every_make_target_is_read_by_make() -> None:
    for target in sorted(TARGETS - {"lock"}):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_each_check_once() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert re.findall(r"make ([a-z]+)", script) == ["setup", "lint", "types", "wheel", "test"]
    assert ".ci/wheel-journey" in script
    for path in (".ci/run", ".ci/wheel-venv", ".ci/wheel-journey"):
        subprocess.run(["bash", "-n", path], cwd=ROOT, check=True)


def test_both_halves_of_the_tests_run_and_either_failing_fails(tmp_path: Path) -> None:
    """With a pytest of ours in pytest's place that fails in one half: the other still runs, and make fails."""
    for ending, codes in (("slow and not ray", (1, 0)), ("slow and ray", (0, 1)), ("nothing", (0, 0))):
        python = tmp_path / "".join(map(str, codes)) / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\ncase "$*" in *"{ending}"*) exit 1 ;; esac\n')
        python.chmod(0o755)
        command = ["make", "--no-print-directory", "tests", f"BIN={python.parent}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"exit codes of pytest: {codes[0]} without Ray, {codes[1]} with Ray" in done.stdout
        assert (done.returncode == 0) == (codes == (0, 0))
