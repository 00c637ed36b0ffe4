"""The user's own command, in the `paper` profile: fetched prompts and a cache of the hub to tables, without a network.

Classes, ids, revisions and file names are those of the published models; their weights are small and random, so only
that every step runs and agrees with the next is shown here, not how good an image is.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import hub_cache
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.cards.base import card_roots

COLOURS = ("red", "blue", "green", "white", "black")
THINGS = ("boat", "kettle", "bridge", "lamp", "tree", "clock", "train", "fence", "piano", "tower")
PLACES = ("a lake", "a window")
SMALL = ("--backbone", "sd-1-4:steps=2:width=64:height=64", "--executor", "inline", "--json")
WITHOUT_BUILD = ("sd-np", "sld-medium", "sld-strong", "sld-max", "uce", "rece", "safree")  # or built in a second
READ = ("esd", "ca", "salun")  # whose published weights are a UNet's
COMMAND = (
    "eval", "--defense", "rece", "--bench", "ring-a-bell-k77", "--limit", "2", "--executor", "inline",
    "--backbone", "sd-1-4:steps=2:width=64:height=64", "--json",
)  # fmt: skip


class Machine:
    """A machine without a network whose cache holds the models; calls the command line in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        hub_cache.fill(root / "hf/hub", root / "scratch")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        own = {
            "HF_HOME": str(self.root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        others = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HARNESS_", "TRANSFORMERS_"))}
        return subprocess.run(
            [sys.executable, "-m", "harness", *words],
            capture_output=True, text=True, env=others | own, cwd=self.root, timeout=600, check=False,
        )  # fmt: skip

    def bench(self, concept: str, edition_of: str) -> str:
        """A benchmark of the machine's own, of harmless prompts for ``concept``; returns its name."""
        name = f"own-{concept}"
        folder = self.root / "cards/datasets"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.csv").write_text("prompt,seed\na red boat beside a lake,7\na lamp beside a window,8\n")
        edition = {
            "rows": 2, "source": f"package:datasets/{name}.csv", "licence": "CC0-1.0", "made": "by a test",
            "columns": {"prompt": ["prompt"], "seed": ["seed"]},
        }  # fmt: skip
        card = {"summary": "of a test", "concept": concept, "paper": "none", "editions": {edition_of: edition}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
        return name

    def weights(self, defense: str) -> str:
        """A card that reads the defense's weights as its authors publish them, and the file; returns its name."""
        card = yaml.safe_load((card_roots()[0] / f"pipelines/defenses/{defense}.yaml").read_text())
        folder = self.root / "cards/pipelines/defenses"
        folder.mkdir(parents=True, exist_ok=True)
        (found,) = (self.root / "hf/hub").glob("models--CompVis*/snapshots/*/unet/*.safetensors")
        changed = {key: value + 0.01 * torch.randn_like(value) for key, value in load_file(found).items()}
        torch.save({"unet": changed} if defense == "ca" else changed, folder / f"{defense}.pt")
        card["params"]["weights"] = f"./{defense}.pt"
        (folder / f"{defense}-read.yaml").write_text(yaml.safe_dump(card))
        return f"{defense}-read"

    def cells(self, *words: str) -> list[dict[str, Any]]:
        """The cells of a run that is as small as it can be."""
        done = self.call("eval", *words, "--cards", "cards", *SMALL)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine, its prompts fetched from the user's own copy of the gated file."""
    made = Machine(tmp_path_factory.mktemp("machine"))
    prompts = [f"a {c} {t} beside {p}" for c in COLOURS for t in THINGS for p in PLACES][:95]
    with (made.root / "own.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["prompt", "case_number", "evaluation_seed"])
        lines.writerows([prompt, i, 1000 + i] for i, prompt in enumerate(prompts))
    done = made.call("fetch", "bench", "ring-a-bell-k77", "--from", "own.csv")
    assert done.returncode == 0, done.stderr
    assert "sha256 is not known" in done.stderr  # of a gated file the card knows rows and columns only
    return made


def test_the_command_runs_from_fetched_files_to_its_tables(machine: Machine) -> None:
    done = machine.call(*COMMAND, "--regen", "resafe:iterations=5")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    anew = "resafe:iterations=5"
    rates = [c for c in summary["cells"] if c["metric"] == "asr" and c["main"]]
    assert {(c["defense"], c["variant"]) for c in rates} == set(product(("none", "rece"), ("base", anew)))
    assert {(c["n"], c["errors"], c["excluded"], c["subset"]) for c in rates} == {(2, 0, 0, "2/95")}
    report = (machine.root / summary["paths"]["report"]).read_text()
    assert f"| rece | {anew} | 0/2 |" in report
    rows = pq.read_table(machine.root / summary["paths"]["scores"]).to_pylist()
    assert len({row["image_sha256"] for row in rows}) == len(rows) == 8
    made = [row for row in rows if row["variant"] == anew]
    for name in ("unsafe_caption", "safe_caption", "optimized_prompt"):
        assert all(row[name] for row in made), name
    assert len({row["unsafe_caption"] for row in made}) > 1  # the captioner sees the image
    assert {(row["iterations"], row["tokens"], row["vlm"]) for row in made} == {(5, 16, "qwen2-vl-7b")}
    assert all(-1 <= row["clip_image_cosine@same/base"] <= 1 for row in made)


def test_more_tokens_than_clip_has_room_for_are_refused_before_anything_is_drawn(machine: Machine) -> None:
    done = machine.call(*COMMAND, "--regen", "resafe:tokens=76")
    assert done.returncode == 2, done.stderr
    assert "tokens is 76, and CLIP of profile 'paper' has room for 75" in done.stderr


@pytest.mark.slow
def test_violence_is_scored_once_q16s_prompts_are_brought(machine: Machine) -> None:
    """Table 6's scorer and policy, from the profile as it is shipped."""
    words = ("--defense", "none", "--bench", machine.bench("violence", "paper"), "--limit", "1", "--regen", "none")
    lacking = machine.call("eval", *words, "--cards", "cards", *SMALL)
    assert lacking.returncode == 2
    assert "`harness fetch weights q16 --from FILE`" in lacking.stderr
    prompts = np.random.default_rng(2).normal(size=(2, 16))
    (machine.root / "prompts.p").write_bytes(pickle.dumps(prompts))
    brought = machine.call("fetch", "weights", "q16", "--from", "prompts.p")
    assert brought.returncode == 0, brought.stderr
    assert "no paper's" in brought.stderr  # the published files are known by their sha256
    (cell,) = (c for c in machine.cells(*words) if c["metric"] == "asr" and c["main"])
    assert (cell["scorer"], cell["policy"].split("@")[0], cell["n"], cell["errors"]) == (
        "q16", "resafe-violence-0.9", 1, 0,
    )  # fmt: skip


def test_what_is_no_prompts_of_q16_is_refused_and_not_stored(machine: Machine) -> None:
    (machine.root / "bad.p").write_bytes(pickle.dumps([1, 2]))
    for name, file, part in (
        ("q16", "bad.p", "no learned prompts"), ("q16", "none.p", "no file"), ("nudenet", "bad.p", "--from is for q16"),
    ):  # fmt: skip
        done = machine.call("fetch", "weights", name, "--from", file, "--data", "elsewhere")
        assert done.returncode == 2
        assert part in done.stderr
    assert not (machine.root / "elsewhere").exists()


@pytest.mark.slow
def test_defenses_run_or_read_their_published_weights(machine: Machine) -> None:
    read = [machine.weights(defense) for defense in READ]
    defenses = ",".join((*WITHOUT_BUILD, *read))
    cells = machine.cells("--defense", defenses, "--bench", "ring-a-bell-k77", "--limit", "1", "--regen", "none")
    rates = {c["defense"]: (c["n"], c["errors"], c["excluded"]) for c in cells if c["metric"] == "asr" and c["main"]}
    assert rates == dict.fromkeys(("none", *WITHOUT_BUILD, *read), (1, 0, 0))
