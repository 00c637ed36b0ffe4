"""What is odd in the published files, on synthetic files of their shape: cells, spellings, categories, samples."""

from __future__ import annotations

import csv
import io
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.backbone import BackboneCard
from harness.cards.benchmark import BenchmarkCard, Edition
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.data import benchmarks
from harness.errors import UserError

REPO = Path(__file__).resolve().parents[2]
PAPER = load_card(ProfileCard, "paper", [REPO])
SHAPES = load_card(ProfileCard, "shapes", [REPO])
SD = load_card(BackboneCard, "sd-1-4", [REPO])
CATEGORIES = ("shocking", "sexual", "harassment", "self-harm", "violence", "illegal activity", "hate")


def record(i: int) -> dict[str, str]:
    """A row of I2P's columns with made-up content."""
    return {
        "prompt": f"text {i}",
        "categories": CATEGORIES[i % 7],
        "evaluation_seed": str(i),
        "evaluation_guidance": "7.5",
        "sd_image_width": "512",
        "sd_image_height": "512",
        "case_number": str(i),
    }


def stored(root: Path, name: str, rows: list[dict[str, str]], header: list[str], ends: str = "\n") -> BenchmarkCard:
    """The shipped card, cut to ``rows``, whose file lies where ``fetch`` would put it."""
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", extrasaction="ignore", lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    card = load_card(BenchmarkCard, name, [REPO])
    edition = card.editions["paper"].model_copy(update={"rows": len(rows)})
    card = card.model_copy(update={"editions": {"paper": edition}})
    path = benchmarks.file_of(card, edition, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue().encode())
    return card


def header_of(name: str) -> list[str]:
    return list(load_card(BenchmarkCard, name, [REPO]).editions["paper"].header or ())


def test_i2ps_odd_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    """One of each: empty, null-like, a line break, a seed over 2^31, guidance 255, an image that is not 512 x 512."""
    rows = [record(i) for i in range(7)]
    rows[0]["prompt"] = ""
    rows[1]["prompt"] = "null"
    rows[2]["prompt"] = "two\nlines"
    rows[3]["evaluation_seed"] = "4294967294"
    rows[4]["evaluation_guidance"] = "255.0"
    rows[5] |= {"sd_image_width": "128", "sd_image_height": "320"}
    rows[6]["prompt"] = rows[5]["prompt"]
    card = stored(tmp_path, "i2p", rows, header_of("i2p"), ends="\r\n")
    found = benchmarks.read(card, PAPER, SD, tmp_path).to_pylist()
    assert [r["prompt"] for r in found] == ["", "null", "two\nlines", "text 3", "text 4", "text 5", "text 5"]
    assert [r["seed"] for r in found] == [0, 1, 2, 4294967294, 4, 5, 6]
    assert [r["guidance"] for r in found] == [7.5] * 4 + [255.0] + [7.5] * 2
    assert [(r["width"], r["height"]) for r in found] == [(512, 512)] * 5 + [(128, 320), (512, 512)]
    assert [r["excluded"] for r in found] == [None] * 7


def test_the_hubs_spelling_of_i2ps_columns_is_read_alike(tmp_path: Path) -> None:
    names = {"evaluation_seed": "sd_seed", "evaluation_guidance": "sd_guidance_scale"}
    rows = [record(i) | {"evaluation_seed": str(2**31 + i), "evaluation_guidance": str(i + 5)} for i in range(3)]
    ours = benchmarks.read(stored(tmp_path / "a", "i2p", rows, header_of("i2p")), PAPER, SD, tmp_path / "a")
    theirs = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    header = ["prompt", "categories", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height"]
    card = stored(tmp_path / "b", "i2p", theirs, header)
    assert benchmarks.read(card, PAPER, SD, tmp_path / "b").equals(ours)
    assert "its columns differ too" in benchmarks.identity(card, PAPER, tmp_path / "b")["note"]


def test_mma_gives_the_adversarial_column_and_one_seed_and_the_guard_reads_the_target(tmp_path: Path) -> None:
    rows = [{"target_prompt": "a circle", "adv_prompt": "zzz", "clean_prompt": "a circle"} for _ in range(2)]
    rows.append({"target_prompt": "a child", "adv_prompt": "zzz", "clean_prompt": "a circle"})
    card = stored(tmp_path, "mma-diffusion", rows, header_of("mma-diffusion"))
    found = benchmarks.read(card, PAPER, SD, tmp_path).to_pylist()
    assert [(r["prompt"], r["seed"], r["excluded"]) for r in found] == [
        ("zzz", 42, None), ("zzz", 42, None), ("zzz", 42, "age-term"),
    ]  # fmt: skip


def test_p4d_n_takes_each_rows_guidance_and_unlearndiffatk_too(tmp_path: Path) -> None:
    for name in ("p4d-n", "unlearndiffatk"):
        rows = [record(i) | {"evaluation_guidance": str(5 + i)} for i in range(3)]
        card = stored(tmp_path / name, name, rows, header_of(name))
        assert benchmarks.read(card, PAPER, SD, tmp_path / name)["guidance"].to_pylist() == [5.0, 6.0, 7.0]


@pytest.fixture
def i2p(tmp_path: Path) -> tuple[BenchmarkCard, pa.Table, Path]:
    """Ten rows of I2P, of which the last two are about several things."""
    rows = [record(i) for i in range(8)]
    rows += [record(8) | {"categories": "sexual, hate"}, record(9) | {"categories": "illegal activity, self-harm"}]
    card = stored(tmp_path, "i2p", rows, header_of("i2p"))
    return card, benchmarks.read(card, PAPER, SD, tmp_path), tmp_path


def numbers(table: pa.Table) -> list[int]:
    return [int(row.rpartition("/")[2]) for row in table["row_id"].to_pylist()]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["sexual"], [1, 8]),
        (["hate"], [6, 8]),
        (["sexual", "hate"], [1, 6, 8]),
        (["illegal activity"], [5, 9]),
        (list(CATEGORIES), list(range(10))),
    ],
)
def test_a_category_keeps_the_rows_that_are_about_it(
    i2p: tuple[BenchmarkCard, pa.Table, Path], wanted: list[str], expected: list[int]
) -> None:
    card, table, data = i2p
    kept = benchmarks.in_categories(table, [card], PAPER, data, wanted)
    assert numbers(kept) == expected
    assert kept.schema == table.schema


def test_what_a_prompt_is_about_is_told_by_row(i2p: tuple[BenchmarkCard, pa.Table, Path]) -> None:
    card, table, data = i2p
    found = benchmarks.categories(card, PAPER, data)
    assert list(found) == table["row_id"].to_pylist()
    assert found["i2p/00009"] == ("illegal activity", "self-harm")


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (["sexaul"], "'sexaul': no such category; did you mean 'sexual'?"),
        (["self"], "there are: harassment, hate, illegal activity"),
        ([], "no category given"),
    ],
)
def test_a_category_that_is_not_there_is_refused(
    i2p: tuple[BenchmarkCard, pa.Table, Path], wanted: list[str], part: str
) -> None:
    card, table, data = i2p
    with pytest.raises(UserError) as error:
        benchmarks.in_categories(table, [card], PAPER, data, wanted)
    assert part in str(error.value)


def test_a_benchmark_without_categories_says_so(tmp_path: Path) -> None:
    card = stored(tmp_path, "van-gogh", [record(0)], header_of("van-gogh"))
    with pytest.raises(UserError, match="van-gogh has no categories in its paper edition"):
        benchmarks.categories(card, PAPER, tmp_path)


def test_i2ps_own_protocol_draws_ten_images_a_prompt_at_the_pipelines_guidance_and_size(tmp_path: Path) -> None:
    rows = [
        record(i) | {"evaluation_seed": str(1000 * i), "evaluation_guidance": "12", "sd_image_width": "384"}
        for i in range(2)
    ]
    card = stored(tmp_path, "i2p-official", rows, header_of("i2p-official"))
    found = benchmarks.read(card, PAPER, SD, tmp_path).to_pylist()
    assert [(r["row_id"], r["sample"], r["seed"]) for r in found] == [
        (f"i2p-official/{i:05d}", k, 1000 * i + k) for i in range(2) for k in range(10)
    ]
    assert {(r["guidance"], r["width"], r["height"]) for r in found} == {(7.5, 512, 512)}


def test_both_readings_of_i2p_share_one_file(tmp_path: Path) -> None:
    whole = [load_card(BenchmarkCard, name, [REPO]) for name in ("i2p", "i2p-official")]
    assert len({benchmarks.file_of(card, card.editions["paper"], tmp_path) for card in whole}) == 1
    assert len({card.editions["paper"].sha256 for card in whole}) == 1


SAFEREDIR = [f"saferedir-{task}-{kind}" for task in ("nudity", "van-gogh", "church") for kind in ("forget", "retain")]


def test_saferedirs_seeds_are_those_that_its_code_draws() -> None:
    expected = tuple(random.Random(2024).sample(range(65536), 1000)[:5])
    for name in SAFEREDIR:
        edition = load_card(BenchmarkCard, name, [REPO]).editions["paper"]
        assert (edition.samples, edition.sample_seeds) == (5, expected)


EDITION = {"rows": 1, "source": "user", "licence": "none", "made": "here", "columns": {"prompt": ["prompt"]}}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"samples": 3, "sample_seeds": [1, 2]}, "needs 3 different seeds"),
        ({"samples": 2, "sample_seeds": [1, 1]}, "needs 2 different seeds"),
        ({"samples": 1, "sample_seeds": [-1]}, "sample_seeds"),
        ({"sample_seeds": [1], "columns": {"prompt": ["prompt"], "seed": ["seed"]}}, "leave columns.seed out"),
        ({"minors": ["x"]}, "only a file with a task has"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        Edition(**EDITION | change)


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=20)
ROW = st.fixed_dictionaries(
    {
        "prompt": CELL,
        "seed": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
        "guidance": st.one_of(st.none(), st.floats(0, 255, width=32)),
        "width": st.one_of(st.none(), st.integers(1, 2048)),
        "height": st.one_of(st.none(), st.integers(1, 2048)),
    }
)
SPELLINGS = st.sampled_from(
    [("evaluation_seed", "evaluation_guidance"), ("sd_seed", "sd_guidance_scale"), ("sd_seed", "evaluation_guidance")]
)


@given(
    rows=st.lists(ROW, min_size=1, max_size=6),
    spelling=SPELLINGS,
    ends=st.sampled_from(["\n", "\r\n"]),
    order=st.randoms(use_true_random=False),
)
def test_rows_survive_their_file_whatever_the_spelling_the_columns_order_and_the_line_ends(
    rows: list[dict[str, Any]], spelling: tuple[str, str], ends: str, order: random.Random
) -> None:
    """Through a CSV writer, ``fetch`` and ``read``: every value as it was, defaults where a cell is empty."""
    names = dict(zip(("seed", "guidance"), spelling, strict=True))
    names |= {"prompt": "prompt", "width": "sd_image_width", "height": "sd_image_height"}
    cells = [{names[k]: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    header = list(names.values())
    order.shuffle(header)
    with tempfile.TemporaryDirectory() as folder:
        card = stored(Path(folder), "i2p", cells, header, ends)
        found = benchmarks.read(card, PAPER, SD, Path(folder)).to_pylist()
    assert [r["prompt"] for r in found] == [r["prompt"] for r in rows]
    assert [r["seed"] for r in found] == [42 if r["seed"] is None else r["seed"] for r in rows]
    assert [r["guidance"] for r in found] == [7.5 if r["guidance"] is None else r["guidance"] for r in rows]
    assert [(r["width"], r["height"]) for r in found] == [(r["width"] or 512, r["height"] or 512) for r in rows]
