"""Workers run the driver's code, or the run is refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from desk import Desk

from harness.cards.base import card_roots
from harness.pipeline.executor import make_ticket, specs
from harness.pipeline.plan import make
from harness.pipeline.request import Request
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.worker_code import difference, identity
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store

PACKAGE = Path(__file__).parents[2] / "harness"
EVAL = ("eval", "--defense", "none", "--bench", "ten", "--profile", "small", "--limit", "4", "--json")


def _copy(folder: Path) -> Path:
    """A copy of the package's sources, with one line changed."""
    copy = folder / "harness"
    ignored = shutil.ignore_patterns("weights", "__pycache__", "nets")
    shutil.copytree(PACKAGE, copy, ignore=ignored)
    oracle = copy / "scorers/shapes_oracle.py"
    oracle.write_text(oracle.read_text() + "\nraise SystemExit('another copy')\n")
    return copy


def _asked(folder: Path, *distributions: str) -> dict[str, Any]:
    """What a process would run that has ``folder`` before everything else on its path."""
    code = f"from worker_code import identity; print(identity(['harness'], {list(distributions)!r}))"
    path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
    (folder / "worker_code.py").write_text((PACKAGE / "pipeline/worker_code.py").read_text())
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    found: dict[str, Any] = eval(done.stdout)
    return found


def test_the_same_code_is_no_difference(tmp_path: Path) -> None:
    own = identity(["harness"], ["torch", "numpy", "no-such-library"])
    assert own["sources"]["harness"]["where"] == str(PACKAGE)
    assert own["versions"]["numpy"] == metadata.version("numpy")
    assert own["versions"]["no-such-library"] == "not installed"
    assert difference(own, _asked(tmp_path, "torch", "numpy", "no-such-library")) == ""


def test_another_copy_a_library_in_the_way_and_another_version_are_named(tmp_path: Path) -> None:
    _copy(tmp_path)
    (tmp_path / "torch.py").write_text("")
    own = identity(["harness"], ["torch", "numpy"])
    other = _asked(tmp_path, "torch", "numpy")
    assert other["sources"] != own["sources"]
    told = difference(own, other)
    assert f"in {tmp_path / 'harness'} instead of {own['sources']['harness']['digest']}" in told
    assert f"torch {tmp_path / 'torch.py'} instead of" in told
    assert "numpy" not in told
    older = {**own, "versions": {**own["versions"], "numpy": "1.0"}}
    assert difference(own, older) == f"numpy 1.0 instead of {own['versions']['numpy']}"


def test_a_file_in_the_packages_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "harness.py").write_text("")
    assert str(tmp_path) in difference(identity(["harness"], []), _asked(tmp_path))


def test_an_actor_with_other_code_than_the_drivers_computes_nothing(tmp_path: Path) -> None:
    """As on a machine that joins a cluster after the others were asked."""
    code = (
        "import sys, pickle\nfrom pathlib import Path\nfrom harness.pipeline.remote_actor import RemoteActor\n"
        "actor, ticket = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "print(RemoteActor(*actor)(ticket).to_pylist()[0]['status'], RemoteActor(*actor)(ticket)['detail'][0])\n"
    )
    request = Request(defenses=("none",), benches=("direct",), profile="shapes", limit=2, regens=())
    plan = make(request, card_roots(), tmp_path, FileHashes())
    context = WorkerContext(store=Store.open(tmp_path / "store"), run=tmp_path / "run")
    own = identity(["harness"], ["numpy"])
    other = {**own, "sources": {"harness": {"digest": "0" * 16, "where": "/elsewhere"}}}
    stages = [specs(plan, "generate")]
    (tmp_path / "made").write_bytes(pickle.dumps(((stages, context, 0.0, other), make_ticket(plan, 0, 0))))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "made")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("failed a worker runs other code than the driver: harness ")
    assert list(context.store.root.glob("generate/*")) == []


@pytest.mark.ray
def test_what_lies_in_the_working_folder_is_not_taken_for_our_code(desk: Desk) -> None:
    reference = desk.run(*EVAL, "--executor", "inline", store="reference", out="reference-runs")
    assert reference.code == 0, reference.err
    _copy(desk.root)
    (desk.root / "torch.py").write_text("raise SystemExit('not torch')\n")
    command = desk.arguments(*EVAL, "--workers", "2")
    command[1:1] = ["-P"]  # as the installed `harness`: Python itself would put the working folder first
    done = subprocess.run(
        command, capture_output=True, text=True, env=desk.environment(), cwd=desk.root, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert desk.shards() == desk.shards("reference")


def test_a_module_in_the_working_folder_does_not_stand_for_a_library(tmp_path: Path) -> None:
    for name in ("torch", "typer", "pyarrow"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not the library')\n")
    done = subprocess.run(
        [sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
