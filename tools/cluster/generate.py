"""Writes cluster.yaml and the files of cluster/ from cluster/settings.yaml: `make cluster`.

One set of settings (image, command, nodes, shared folder, environment) answers for every launcher; a test compares
what lies in the repository with what this writes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "cluster" / "settings.yaml"
TEMPLATES = Path(__file__).parent / "templates"
NOTE = "Written by `make cluster` from cluster/settings.yaml: change it there. docs/cluster.md says how to use it."
PORT = 6379  # of Ray's head


def target(template: Path) -> Path:
    """Where a template's file goes: cluster.yaml to the root, where Ray's users look for it, the others to cluster/."""
    name = template.name.removesuffix(".j2")
    return ROOT / name if name == "cluster.yaml" else ROOT / "cluster" / name


def values(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what follows from them and the project: the tagged image, the whole command, versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = re.search(r'__version__ = "(.+?)"', (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text())
    ray = re.search(r"(?m)^ray(?:\[.*?\])?==(\S+)", (ROOT / "requirements/cluster.txt").read_text())
    assert version
    assert ray
    workers = settings["workers"]
    options = f"--num-gpus {workers['nodes'] * workers['gpus']} --gpu-memory {workers['gpu_memory_gb']}"
    return {
        **settings,
        "image": f"{settings['image']}:{version[1]}",
        "command": f"{settings['command']} {options}",
        "ray": ray[1],
        "python": "3.11",
        "port": PORT,
        "note": NOTE,
    }


def render(settings: dict[str, Any]) -> dict[Path, str]:
    """The text of every file, by its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    known = values(settings)
    templates = sorted(TEMPLATES.glob("*.j2"))
    return {target(path): environment.get_template(path.name).render(known) for path in templates}


def main() -> None:
    """Write the files from the settings named on the command line, else from those of the repository."""
    settings = yaml.safe_load(Path(sys.argv[1] if len(sys.argv) > 1 else SETTINGS).read_text())
    for path, text in render(settings).items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
