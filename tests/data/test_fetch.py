"""Fetching: a file is stored only when it is known to be the right one; what is missing is said all at once."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web_server import Web, web

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_card, load_cards
from harness.cards.profile import ProfileCard
from harness.data import benchmarks, fetch
from harness.errors import UserError
from harness.pipeline import prerequisites

REPO = Path(__file__).resolve().parents[2]
PAPER = load_card(ProfileCard, "paper", [REPO])
SHAPES = load_card(ProfileCard, "shapes", [REPO])
SD = load_card(BackboneCard, "sd-1-4", [REPO])
SMALL = load_card(BackboneCard, "shapes", [REPO])
TEXT = "prompt,case_number,evaluation_seed\n" + "".join(f"text {i},{i},{i}\n" for i in range(95))
VIOLENCE = ("ring-a-bell-violence-eta5-k77", "ring-a-bell-violence-eta5.5-k38", "ring-a-bell-violence-eta5.5-k77")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bench(name: str = "ring-a-bell-k77", **edition: Any) -> BenchmarkCard:
    """A shipped card, its paper edition changed."""
    card = load_card(BenchmarkCard, name, [REPO])
    changed = card.editions["paper"].model_copy(update=edition)
    return card.model_copy(update={"editions": {**card.editions, "paper": changed}})


def stored(data: Path) -> list[str]:
    return sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.is_file()) if data.exists() else []


def own(tmp_path: Path, text: str = TEXT, name: str = "mine.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_users_file_is_known_by_its_hash(tmp_path: Path) -> None:
    data = tmp_path / "data"
    got = fetch.fetch_bench(bench(sha256=sha(TEXT)), data, own(tmp_path))
    assert got == (data / "bench/ring-a-bell-k77.csv", sha(TEXT), 95, "")
    assert got.path.read_text() == TEXT
    record = json.loads((data / "bench/ring-a-bell-k77.csv.source.json").read_text())
    assert (record["sha256"], record["identity"], record["rows"], record["source"]) == (
        sha(TEXT),
        "exact",
        95,
        "file mine.csv",
    )
    assert str(tmp_path) not in json.dumps(record)


def test_a_users_file_without_a_known_hash_is_taken_under_a_warning(tmp_path: Path) -> None:
    got = fetch.fetch_bench(bench(sha256="0" * 64), tmp_path / "data", own(tmp_path))
    assert "is not the card's" in got.warning
    got = fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path))
    assert "not known to the card" in got.warning


def test_what_was_stored_reads_back(tmp_path: Path) -> None:
    fetch.fetch_bench(bench(), tmp_path, own(tmp_path))
    rows = benchmarks.read(bench(), PAPER, SD, tmp_path)
    assert rows["seed"].to_pylist() == list(range(95))


def test_stored_prompts_are_for_the_user_only(tmp_path: Path) -> None:
    got = fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path))
    assert stat.S_IMODE(got.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (TEXT.rpartition("text 94")[0], "ends after 94 rows where ring-a-bell-k77 has 95: it is truncated"),
        (TEXT[:-4], "mine.csv:96: ends before column"),
        (TEXT + "more,95,95\n", "ends after 96 rows"),
        (TEXT.replace("prompt", "text"), "no column 'prompt'"),
        ("prompt\n", "holds no rows"),
        (TEXT.replace("text 3,3,3", "text 3,3,-3"), "mine.csv:5: column 'evaluation_seed': negative seed -3"),
        (TEXT.replace("text 3,3,3", "text 3,3,nan"), "mine.csv:5: column 'evaluation_seed': seed 'nan'"),
        (TEXT.replace("text 3,3,3", "text 3,2,3"), "mine.csv:5: column 'case_number': id '2' is given twice"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, text))
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert stored(tmp_path / "data") == []


def test_a_wrong_file_leaves_the_right_one_in_place(tmp_path: Path) -> None:
    fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path))
    before = stored(tmp_path / "data")
    with pytest.raises(UserError):
        fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, "prompt\n"))
    assert stored(tmp_path / "data") == before
    assert (tmp_path / "data/bench/ring-a-bell-k77.csv").read_text() == TEXT


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: cannot be read"):
        fetch.fetch_bench(bench(), tmp_path, tmp_path / "nowhere.csv")


def test_a_known_variant_is_refused_by_name(tmp_path: Path) -> None:
    card = bench()
    known = card.editions["paper"].known[0].model_copy(update={"sha256": sha(TEXT)})
    with pytest.raises(UserError, match="79 rows that goes by its name: the reproduction"):
        fetch.fetch_bench(bench(known=(known,)), tmp_path / "data", own(tmp_path))


def test_another_benchmarks_file_is_refused_by_that_ones_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "prompt\n" + "".join(f"text {i}\n" for i in range(272))
    everything = [*load_cards(BenchmarkCard, card_roots()), bench("p4d", sha256=sha(text))]
    monkeypatch.setattr(fetch, "load_cards", lambda kind, roots: everything)
    for card in (bench("unlearndiffatk"), bench("ring-a-bell-k77"), bench("i2p")):
        with pytest.raises(UserError, match=rf"mine\.csv: is not {card.name} but p4d: `harness fetch bench p4d --from"):
            fetch.fetch_bench(card, tmp_path / "data", own(tmp_path, text))
    assert stored(tmp_path / "data") == []
    assert fetch.fetch_bench(bench("p4d", sha256=sha(text)), tmp_path / "data", own(tmp_path, text)).rows == 272


def test_ring_a_bells_gated_files_are_told_apart_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"K_38\.csv: is called as the file of ring-a-bell-k38, not of ring-a-bell-k77"):
        fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, name="Nudity_eta_3_K_38.csv"))
    assert stored(tmp_path / "data") == []
    for name in ("Nudity_eta_3_K_77.csv", "mine.csv"):
        assert fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, name=name)).rows == 95


def test_another_concepts_list_of_as_many_rows_is_no_list_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "prompt,evaluation_seed\n" + "".join(f"text {i},{i}\n" for i in range(50))
    monkeypatch.setattr(fetch, "load_cards", lambda kind, roots: [bench("van-gogh", sha256=sha(text))])
    with pytest.raises(UserError, match="is not picasso but van-gogh"):
        fetch.fetch_bench(bench("picasso"), tmp_path / "data", own(tmp_path, text))
    assert (
        fetch.fetch_bench(bench("picasso"), tmp_path / "data", own(tmp_path, text.replace("text 3", "mine"))).rows == 50
    )


def test_a_card_of_ones_own_may_read_a_published_file_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = bench("ring-a-bell-violence-eta5-k77", rows=95, sha256=sha(TEXT))
    mine = bench("ring-a-bell-violence-eta5-k77", rows=95, sha256=None, header=None, source="https://x/mine.csv")
    monkeypatch.setattr(fetch, "load_cards", lambda kind, roots: [published])
    mine = mine.model_copy(update={"name": "mine"})
    assert fetch.fetch_bench(mine, tmp_path, own(tmp_path)).rows == 95


def test_a_compressed_copy_is_the_published_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    got = fetch.fetch_bench(bench(sha256=sha(TEXT)), tmp_path / "data", path)
    assert (got.sha256, got.warning, got.path.read_text()) == (sha(TEXT), "", TEXT)


def test_a_parquet_copy_reads_as_its_csv(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(TEXT)))
    typed = [
        {"prompt": r["prompt"], "case_number": int(r["case_number"]), "evaluation_seed": float(i)}
        for i, r in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "mine.parquet")
    fetch.fetch_bench(bench(), tmp_path / "data", tmp_path / "mine.parquet")
    fetch.fetch_bench(bench(), tmp_path / "other", own(tmp_path))
    read = [benchmarks.read(bench(), PAPER, SD, tmp_path / name) for name in ("data", "other")]
    assert read[0].equals(read[1])


def test_a_provenance_that_somebody_damaged_is_passed_over(tmp_path: Path) -> None:
    fetch.fetch_bench(bench("ring-a-bell-k77"), tmp_path, own(tmp_path))
    (tmp_path / "bench/ring-a-bell-k77.csv.source.json").write_text("[]")
    assert fetch.fetch_bench(bench("ring-a-bell-k38"), tmp_path, own(tmp_path)).rows == 95


def test_the_same_file_under_two_names_is_pointed_out(tmp_path: Path) -> None:
    fetch.fetch_bench(bench("ring-a-bell-k77"), tmp_path / "data", own(tmp_path))
    got = fetch.fetch_bench(bench("ring-a-bell-k38"), tmp_path / "data", own(tmp_path))
    assert "the very same file is stored as ring-a-bell-k77" in got.warning


def test_a_packaged_benchmark_has_nothing_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="benign comes with the package"):
        fetch.fetch_bench(load_card(BenchmarkCard, "benign", [REPO]), tmp_path)


def test_a_gated_benchmark_without_a_token_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError) as error:
        fetch.fetch_bench(bench(), tmp_path / "data")
    for part in ("95 prompts, gated", "https://huggingface.co/datasets/Chia15", "HF_TOKEN", "--from FILE"):
        assert part in str(error.value)
    assert stored(tmp_path / "data") == []


def test_a_list_of_ones_own_says_that_it_is_not_public(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no list of 50 is public.*--from FILE"):
        fetch.fetch_bench(load_card(BenchmarkCard, "picasso", [REPO]), tmp_path)


def test_an_open_file_is_downloaded_once(tmp_path: Path) -> None:
    with web({"/x.csv": (200, TEXT.encode())}) as address:
        card = bench(source=f"{address}/x.csv", sha256=sha(TEXT), gated=False)
        assert fetch.fetch_bench(card, tmp_path).warning == ""
        assert fetch.fetch_bench(card, tmp_path).rows == 95
        assert Web.asked == ["/x.csv"]
    assert (tmp_path / "bench/ring-a-bell-k77.csv").read_text() == TEXT


def test_a_source_that_holds_another_file_is_refused(tmp_path: Path) -> None:
    with web({"/x.csv": (200, TEXT.encode())}) as address:
        card = bench(source=f"{address}/x.csv", sha256="0" * 64, gated=False)
        with pytest.raises(UserError, match=r"now holds another file.*instead of 000000000000"):
            fetch.fetch_bench(card, tmp_path)
    assert stored(tmp_path) == []


def test_a_file_that_only_looked_alike_gives_way_to_the_sources(tmp_path: Path) -> None:
    with web({"/x.csv": (200, TEXT.encode())}) as address:
        card = bench(source=f"{address}/x.csv", sha256=sha(TEXT), gated=False)
        fetch.fetch_bench(card, tmp_path, own(tmp_path, TEXT.replace("text 3", "else")))
        assert fetch.fetch_bench(card, tmp_path).sha256 == sha(TEXT)


@pytest.mark.parametrize("path", ["/gone.csv", None])
def test_a_source_that_does_not_answer_offers_the_other_way(tmp_path: Path, path: str | None) -> None:
    with web({}) as address:
        source = f"{address}{path}"
        if path is None:
            source = "http://127.0.0.1:9/x.csv"  # the discard port: nobody listens
        with pytest.raises(UserError, match=r"cannot be fetched.*--from FILE"):
            fetch.fetch_bench(bench(source=source, gated=False), tmp_path)
    assert stored(tmp_path) == []


HUB = """
import sys
from pathlib import Path
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_card
from harness.data import fetch
from harness.errors import UserError
card = load_card(BenchmarkCard, "ring-a-bell-k77", [Path(sys.argv[1])])
try:
    print(fetch.fetch_bench(card, Path(sys.argv[2]), token="hf_test"))
except UserError as error:
    print("refused:", error)
"""


def through_hub(tmp_path: Path, answer: tuple[int, bytes]) -> str:
    """What fetching a gated benchmark prints when the hub gives this answer."""
    path = "/datasets/Chia15/RingABell-Nudity/resolve/{}/Nudity_eta_3_K_77.csv"
    with web({path.format(revision): answer for revision in ("main", "1" * 40)}) as address:
        env = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-c", HUB, str(REPO), str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPO, check=True)
    return done.stdout


def test_a_gated_file_comes_through_the_hub_with_a_token(tmp_path: Path) -> None:
    assert "rows=95" in through_hub(tmp_path, (200, TEXT.encode()))
    assert stored(tmp_path / "data") == ["bench/ring-a-bell-k77.csv", "bench/ring-a-bell-k77.csv.source.json"]
    assert not list((tmp_path / "home").rglob("*.csv")), "a gated file must not stay in a shared cache"
    record = json.loads((tmp_path / "data/bench/ring-a-bell-k77.csv.source.json").read_text())
    assert record["source"] == f"hub:Chia15/RingABell-Nudity@{'1' * 40}/Nudity_eta_3_K_77.csv"


def test_a_token_without_access_is_told_so(tmp_path: Path) -> None:
    message = through_hub(tmp_path, (403, b""))
    assert "access is not granted to this token" in message
    assert "https://huggingface.co/datasets/Chia15/RingABell-Nudity" in message
    assert stored(tmp_path / "data") == []


def test_everything_missing_is_listed_with_a_way_to_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    chosen = [bench("ring-a-bell-k77"), bench("i2p"), bench("picasso"), *SD.weights()]
    lines = prerequisites.missing(chosen, PAPER, tmp_path)
    assert len(lines) == len(chosen)
    for line, part in zip(lines, ("HF_TOKEN", "fetch bench i2p", "--from FILE", "fetch weights sd-1-4"), strict=True):
        assert part in line
    with pytest.raises(UserError) as error:
        prerequisites.require(chosen, PAPER, tmp_path)
    assert all(line in str(error.value) for line in lines)
    assert "--profile shapes" in str(error.value)


def test_what_is_here_is_not_missing(tmp_path: Path) -> None:
    fetch.fetch_bench(bench(), tmp_path, own(tmp_path))
    assert prerequisites.missing([bench()], PAPER, tmp_path) == []
    prerequisites.require([bench()], PAPER, tmp_path)


def test_a_users_guidance_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    card = bench("p4d-n", rows=1, sha256=None)
    text = "prompt,evaluation_seed,evaluation_guidance,case_number\na,1,nan,0\n"
    with pytest.raises(UserError, match=r"mine\.csv:2: column 'evaluation_guidance': guidance 'nan'"):
        fetch.fetch_bench(card, tmp_path / "data", own(tmp_path, text))
    assert stored(tmp_path / "data") == []


def test_a_file_in_another_encoding_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(TEXT.replace("text 3", "t\xe9xt 3").encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.csv:5: column 2: byte 0xe9 is not UTF-8"):
        fetch.fetch_bench(bench(), tmp_path / "data", path)
    assert stored(tmp_path / "data") == []


@pytest.mark.parametrize("name", VIOLENCE)
def test_a_published_violence_file_is_taken_for_itself_and_for_no_other(name: str, tmp_path: Path) -> None:
    """Runs on a synthetic file where ``HARNESS_BENCH_FILES`` names no folder with the published ones."""
    card = load_card(BenchmarkCard, name, [REPO])
    edition = card.editions["paper"]
    path = Path(os.environ.get("HARNESS_BENCH_FILES", ".")) / edition.source.rpartition("/")[2]
    if not path.is_file():
        path = own(
            tmp_path, "prompt,case_number,evaluation_seed\n" + "".join(f"text {i},{i},{i}\n" for i in range(250))
        )
        known = tuple(k.model_copy(update={"sha256": sha(path.read_text())}) for k in edition.known[:1])
        card = bench(name, sha256=sha(path.read_text()))
        other = bench(next(v for v in VIOLENCE if v != name), known=known)
    else:
        other = load_card(BenchmarkCard, next(v for v in VIOLENCE if v != name), [REPO])
    got = fetch.fetch_bench(card, tmp_path / "data", path)
    assert (got.rows, got.warning) == (250, "")
    with pytest.raises(UserError, match="that goes by its name: ring-a-bell-violence"):
        fetch.fetch_bench(other, tmp_path / "data", path)
