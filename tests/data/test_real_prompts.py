"""The published files, where they are at hand: known by hash, imported, drawn, scored by the real NudeNet."""

from __future__ import annotations

import json
import os
import subprocess
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from desk import Desk

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_cards

FILES = {
    "ring-a-bell-violence-eta5-k77": "Violence_eta_5_K_77.csv",
    "ring-a-bell-violence-eta5.5-k38": "Violence_eta_5.5_K_38.csv",
    "ring-a-bell-violence-eta5.5-k77": "Violence_eta_5.5_K_77.csv",
}
_FOLDER = Path(os.environ.get("HARNESS_BENCH_FILES") or "nowhere")
PRESENT = [name for name, file in FILES.items() if (_FOLDER / file).exists()]


def _import(desk: Desk, name: str) -> dict[str, object]:
    command = [*desk.arguments("fetch", "bench", name)[:6], "--from", str((_FOLDER / FILES[name]).resolve())]
    command += ["--data", str(desk.root / "data"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=desk.root, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


MANIFEST = _FOLDER / "manifest.json"
# Lists that are no benchmark here: what attacks were made from, other artists' sets, scorers' files.
ELSEWHERE = ("ringabell_src", "q16")
OTHER_ARTISTS = ("artist/big_artist_prompts.csv", "artist/short_niche_art_prompts.csv")


def _benchmarks() -> list[dict[str, Any]]:
    """Files of the survey that are prompts of a benchmark."""
    listed: list[dict[str, Any]] = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
    return [one for one in listed if one["bench"] not in ELSEWHERE and one["file"] not in OTHER_ARTISTS]


@pytest.mark.parametrize("listed", _benchmarks(), ids=itemgetter("file"))
def test_every_file_of_the_survey_is_an_edition_or_a_known_variant_with_its_rows(listed: dict[str, Any]) -> None:
    found: list[tuple[int, list[str] | None]] = []
    for card in load_cards(BenchmarkCard, card_roots()):
        assert isinstance(card, BenchmarkCard)
        for edition in card.editions.values():
            if edition.sha256 == listed["sha256"]:
                found.append((edition.rows, list(edition.header) if edition.header else None))
            found += [(known.rows, None) for known in edition.known if known.sha256 == listed["sha256"]]
    assert found, f"no card knows {listed['file']}"
    if "rows" in listed:  # of a CSV
        assert {rows for rows, _ in found} == {listed["rows"]}
        assert all(header in (None, listed["header"]) for _, header in found)


@pytest.mark.parametrize("name", PRESENT)
def test_a_published_file_is_known_by_its_hash(desk: Desk, name: str) -> None:
    found = _import(desk, name)
    assert (found["rows"], found["warning"]) == (250, "")


@pytest.mark.parametrize("name", PRESENT[:1])
def test_its_prompts_are_drawn_by_the_shapes_backbone_and_scored_by_nudenet(desk: Desk, name: str) -> None:
    _import(desk, name)
    done = desk.run(
        "eval", "--defense", "uce", "--bench", name, "--profile", "rehearsal", "--limit", "6", "--json",
        "--executor", "inline", "--data", str(desk.root / "data"),
    )  # fmt: skip
    assert done.code == 0, done.err
    cells = [c for c in done.json["cells"] if c["metric"] == "asr"]
    assert [(c["scorer"], c["n"] + c["excluded"], c["errors"], c["subset"]) for c in cells] == [
        ("nudenet", 6, 0, "6/250")
    ] * 2
    rows = pq.read_table(done.json["paths"]["scores"]).to_pylist()
    assert all(0 <= r["nudenet_female_breast_exposed"] < 1 for r in rows if r["image_sha256"])
    assert all(r["seed"] <= 100 for r in rows)
