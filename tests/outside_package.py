"""Packages of a stranger's, as CONTRIBUTING.md shows one: written into a folder and installed as pip installs them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_SCORER = "deaf/contrast.py"
_LINE = "pyproject.toml, under [project.entry-points]"


def shown() -> dict[str, str]:
    """File name to content of the package that CONTRIBUTING.md shows: each block's first line names its file."""
    return {name: content for name, content in _blocks().items() if name not in (_SCORER, _LINE)}


def with_scorer() -> dict[str, str]:
    """The same with the scorer that CONTRIBUTING.md adds."""
    blocks = _blocks()
    return {**shown(), "pyproject.toml": blocks["pyproject.toml"] + blocks[_LINE], _SCORER: blocks[_SCORER]}


def _blocks() -> dict[str, str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## A package of your own")[2].partition("\n## ")[0]
    return dict(re.findall(r"```\w+\n# ([^\n]+)\n(.*?)```", section, flags=re.DOTALL))


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """The files in ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def install(files: Mapping[str, str], folder: Path) -> Path:
    """Build and install a package offline; returns the folder that belongs on the path."""
    source, site = write(folder / "source", files), folder / "site"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile",
            "--no-index", "--disable-pip-version-check", "--target", str(site), str(source),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return site


def unpacked(
    site: Path, package: str, points: Mapping[str, Mapping[str, str]], files: Mapping[str, str], version: str = "1.0"
) -> Path:
    """What pip would leave of a package: its files, and what it says of itself; in a moment."""
    write(site, files)
    entries = "".join(
        f"[harness.{group}]\n" + "".join(f"{name} = {target}\n" for name, target in names.items())
        for group, names in points.items()
    )
    about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    folder = f"{package.replace('-', '_')}-{version}.dist-info"
    return write(site, {f"{folder}/METADATA": about, f"{folder}/entry_points.txt": entries})
