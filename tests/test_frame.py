"""Rules of the code base itself: who imports Ray, what lies where, how light the command line is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "harness").rglob("*.py"))


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_one_module_imports_ray() -> None:
    assert [p.relative_to(ROOT).as_posix() for p in SOURCES if "ray" in _top(_imported(p))] == [
        "harness/pipeline/ray_session.py"
    ]


def test_metrics_never_import_torch() -> None:
    pure = list((ROOT / "harness/metrics").glob("*.py"))
    assert [p for p in pure if "torch" in _top(_imported(p))] == []


@pytest.mark.parametrize("folder", ["pipelines", "datasets", "reports"])
def test_card_folders_hold_no_python(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py*")) == []


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["list", "defenses"], ["--version"]])
def test_looking_loads_neither_torch_nor_ray(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"sys.argv = ['harness', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "print('LOADED', [m for m in ('torch', 'ray', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED []\n")


def test_planning_a_regeneration_loads_neither_torch_nor_ray() -> None:
    """Fingerprints come from cards, files and sources; asking what a run would do must be quick."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.cards.base import card_roots\n"
        "from harness.pipeline import schedule\nfrom harness.store.fingerprint import FileHashes\n"
        "from harness.pipeline.plan import make\nfrom harness.pipeline.request import Request\n"
        "request = Request(defenses=('uce',), benches=('ring-a-bell-k77',), profile='shapes',\n"
        "                  regens=('resafe', 'simple-caption', 'pez'))\n"
        "plan = make(request, card_roots(), Path('data'), FileHashes())\n"
        "schedule.cut(plan, 1, 80)\n"
        "print(len(plan.conditions), [m for m in ('torch', 'ray', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "2 []\n"


def test_every_module_says_what_it_is() -> None:
    assert [p for p in SOURCES if ast.get_docstring(ast.parse(p.read_text())) is None and p.read_text().strip()] == []


def test_no_machine_path_in_the_code() -> None:
    bad = [p for p in [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"] if "/wo" + "rk/" in p.read_text()]
    assert bad == []


def test_shipped_weights_stay_small() -> None:
    files = [p for p in (ROOT / "harness/shapes/weights").rglob("*") if p.is_file()]
    assert 0 < sum(p.stat().st_size for p in files) <= 20_000_000
