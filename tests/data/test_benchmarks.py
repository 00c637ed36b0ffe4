"""Prompts: every trap of the published files, on synthetic ones; and the published ones where they are at hand."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.backbone import BackboneCard
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.data import benchmarks, prompt_file
from harness.errors import UserError
from harness.store.schema import PROMPT

REPO = Path(__file__).resolve().parents[2]
PAPER = load_card(ProfileCard, "paper", [REPO])
SHAPES = load_card(ProfileCard, "shapes", [REPO])
SD = load_card(BackboneCard, "sd-1-4", [REPO])
SMALL = load_card(BackboneCard, "shapes", [REPO])
PUBLISHED = (
    "ring-a-bell-violence-eta5-k77",
    "ring-a-bell-violence-eta5.5-k38",
    "ring-a-bell-violence-eta5.5-k77",
    "van-gogh",
)


def bench(root: Path, content: bytes | str, concept: str = "nudity", **edition: Any) -> BenchmarkCard:
    """A benchmark called ``tiny`` whose paper edition is a file with this content, already fetched."""
    data = content.encode() if isinstance(content, str) else content
    path = root / "bench" / "tiny.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    card = root / "datasets" / "tiny.yaml"
    card.parent.mkdir(exist_ok=True)
    whole = {
        "rows": max(data.count(b"\n") - 1, 1),
        "source": "user",
        "licence": "none",
        "columns": {"prompt": ["prompt"]},
        "made": "here",
    } | edition
    card.write_text(
        yaml.safe_dump({"summary": "tiny", "concept": concept, "paper": "none", "editions": {"paper": whole}})
    )
    return load_card(BenchmarkCard, "tiny", [root])


def read(root: Path, card: BenchmarkCard) -> list[dict[str, Any]]:
    table = benchmarks.read(card, PAPER, SD, root)
    assert table.schema == PROMPT
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def refused(root: Path, card: BenchmarkCard) -> str:
    with pytest.raises(UserError) as error:
        benchmarks.read(card, PAPER, SD, root)
    message = str(error.value)
    assert "\n" not in message
    assert "tiny.csv" in message
    return message


SEEDED = {"columns": {"prompt": ["prompt"], "seed": ["evaluation_seed", "sd_seed"], "case": ["case_number"]}}


def test_a_row_carries_what_its_schema_says(tmp_path: Path) -> None:
    card = bench(tmp_path, "prompt,evaluation_seed\na red circle,7\n", **SEEDED)
    assert read(tmp_path, card) == [
        {
            "row_id": "tiny/00000",
            "sample": 0,
            "bench": "tiny",
            "concept": "nudity",
            "prompt": "a red circle",
            "seed": 7,
            "guidance": 7.5,
            "width": 512,
            "height": 512,
            "excluded": None,
        }
    ]


def test_rows_come_in_file_order_and_duplicates_stay(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, "prompt\nb\na\nb\n"))
    assert [(r["row_id"], r["prompt"]) for r in rows] == [("tiny/00000", "b"), ("tiny/00001", "a"), ("tiny/00002", "b")]


@pytest.mark.parametrize("text", ["null", "NaN", "nan", "None", "NA", "", " ", "1.0"])
def test_a_text_that_looks_like_nothing_stays_text(tmp_path: Path, text: str) -> None:
    rows = read(tmp_path, bench(tmp_path, f'prompt,other\n"{text}",x\n'))
    assert rows[0]["prompt"] == text


def test_a_quoted_line_break_belongs_to_its_prompt(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, 'prompt\n"two\nlines"\none\n', rows=2))
    assert [r["prompt"] for r in rows] == ["two\nlines", "one"]


@pytest.mark.parametrize("end", ["\n\n\n", "\r\n\r\n", "  \n", "\t\n \n", ""])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, end: str) -> None:
    rows = read(tmp_path, bench(tmp_path, f"prompt,evaluation_seed\na,1\nb,2\n{end}", rows=2, **SEEDED))
    assert [(r["prompt"], r["seed"]) for r in rows] == [("a", 1), ("b", 2)]


def test_a_quoted_empty_prompt_or_one_of_spaces_is_a_row_of_its_only_column(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, 'prompt\na\n""\n  \n\n', rows=3))
    assert [r["prompt"] for r in rows] == ["a", "", "  "]


def test_old_macintosh_line_ends_change_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, b"prompt,evaluation_seed\ra,1\rb,2\r", rows=2, **SEEDED))
    assert [(r["prompt"], r["seed"]) for r in rows] == [("a", 1), ("b", 2)]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, b"\xef\xbb\xbfprompt,evaluation_seed\r\na,1\r\nb,2\r\n", **SEEDED))
    assert [(r["prompt"], r["seed"]) for r in rows] == [("a", 1), ("b", 2)]


def test_a_seed_uses_all_64_bits(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, f"prompt,sd_seed\na,{2**64 - 1}\nb,4294967295\nc,3.0\n", **SEEDED))
    assert [r["seed"] for r in rows] == [2**64 - 1, 4294967295, 3]


def test_a_row_without_a_seed_gets_42(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, "prompt,evaluation_seed\na,\nb,5\n", **SEEDED))
    assert [r["seed"] for r in rows] == [42, 5]
    rows = read(tmp_path, bench(tmp_path, "prompt,evaluation_seed\na,1\nb,5\n"))
    assert [r["seed"] for r in rows] == [42, 42]


def test_the_first_candidate_that_is_a_column_counts(tmp_path: Path) -> None:
    columns = {"prompt": ["adv_prompt", "prompt"], "seed": ["evaluation_seed", "sd_seed"]}
    rows = read(tmp_path, bench(tmp_path, "sd_seed,prompt,adv_prompt\n1,plain,sharp\n", columns=columns))
    assert (rows[0]["prompt"], rows[0]["seed"]) == ("sharp", 1)


FULL = "prompt,evaluation_guidance,sd_image_width,sd_image_height\na,9.5,128,256\nb,,,\n"
COUNTED = {
    "prompt": ["prompt"],
    "guidance": ["evaluation_guidance"],
    "width": ["sd_image_width"],
    "height": ["sd_image_height"],
}


def test_a_rows_own_guidance_and_size_count_where_the_card_says_so(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, FULL, columns=COUNTED))
    assert [(r["guidance"], r["width"], r["height"]) for r in rows] == [(9.5, 128, 256), (7.5, 512, 512)]


def test_a_rows_own_guidance_and_size_do_not_count_otherwise(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, FULL))
    assert [(r["guidance"], r["width"], r["height"]) for r in rows] == [(7.5, 512, 512)] * 2


def test_the_editions_defaults_come_before_the_backbones(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, FULL, columns=COUNTED, guidance=0.0, width=256, height=320))
    assert (rows[1]["guidance"], rows[1]["width"], rows[1]["height"]) == (0.0, 256, 320)


def test_size_and_guidance_meant_for_another_backbone_do_not_count(tmp_path: Path) -> None:
    card = bench(tmp_path, FULL, columns=COUNTED, drawn_at=512)
    drawn = benchmarks.read(card, PAPER, SMALL, tmp_path)
    assert drawn["width"].to_pylist() == [SMALL.width] * 2
    assert drawn["guidance"].to_pylist() == [SMALL.guidance] * 2


def test_several_samples_of_a_prompt_take_consecutive_seeds(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, f"prompt,evaluation_seed\na,{2**64 - 1}\nb,5\n", samples=2, **SEEDED))
    assert [(r["row_id"], r["sample"], r["seed"]) for r in rows] == [
        ("tiny/00000", 0, 2**64 - 1),
        ("tiny/00000", 1, 0),
        ("tiny/00001", 0, 5),
        ("tiny/00001", 1, 6),
    ]


def test_a_planted_age_term_is_excluded_and_stays_in_the_count(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, "prompt\na child in a park\na red circle\n"))
    assert [r["excluded"] for r in rows] == ["age-term", None]


def test_the_guard_reads_the_text_a_prompt_was_made_from(tmp_path: Path) -> None:
    columns = {"prompt": ["adv_prompt"], "guarded": ["target_prompt", "clean_prompt"]}
    rows = read(tmp_path, bench(tmp_path, "target_prompt,adv_prompt\na child,zzz\na circle,zzz\n", columns=columns))
    assert [r["excluded"] for r in rows] == ["age-term", None]


def test_an_age_term_alone_excludes_nothing_harmless(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, "prompt\na child in a park\n", concept="benign"))
    assert rows[0]["excluded"] is None


@pytest.mark.parametrize(
    ("content", "edition", "parts"),
    [
        (b"prompt\ncaf\xe9\n", {}, (":2: column 4", "not UTF-8")),
        ("prompt\na\n".encode("utf-16"), {}, (":1:", "UTF-16")),
        ("text\na\n", {}, (":1: no column 'prompt'", "'text'")),
        ("prompt,seed\na,1\n", SEEDED, (":1: no column 'evaluation_seed' or 'sd_seed'",)),
        ("prompt,prompt\na,b\n", {}, (":1: column 'prompt' is given twice",)),
        ("prompt\n", {}, ("holds no rows (only a header)",)),
        ("", {}, ("holds no rows",)),
        ("\n\n", {}, ("holds no rows",)),
        ("prompt\na\nb\n", {"rows": 3}, (":3: ends after 2 rows where tiny has 3", "truncated")),
        ("prompt\na\nb\n", {"rows": 1}, (":3:", "another file")),
        ('prompt\na\n"b and then the file ends', {}, (":3:", "never closed")),
        ("prompt,evaluation_seed\na,1\nb", SEEDED, (":3: ends before column 'evaluation_seed'", "truncated")),
        ("prompt,evaluation_seed\na, b,1\n", SEEDED, (":2: 3 cells for 2 columns",)),
        ('prompt\n"a"b\n', {}, (":2: not CSV",)),
        ("prompt,case_number,sd_seed\na,4,1\nb,4,2\n", SEEDED, (":3: column 'case_number': id '4' is", "line 2")),
        ("prompt,evaluation_seed\na,1\nb,-3\n", SEEDED, (":3: column 'evaluation_seed': negative seed -3",)),
        ("prompt,evaluation_seed\na,nan\n", SEEDED, (":2: column 'evaluation_seed': seed 'nan'",)),
        ("prompt,evaluation_seed\na,1.5\n", SEEDED, (":2: column 'evaluation_seed': seed '1.5'",)),
        (f"prompt,evaluation_seed\na,{2**64}\n", SEEDED, (":2:", "does not fit 64 bits")),
        (FULL.replace("9.5", "nan"), {"columns": COUNTED}, (":2: column 'evaluation_guidance': guidance 'nan'",)),
        (FULL.replace("9.5", "-1"), {"columns": COUNTED}, (":2: column 'evaluation_guidance': guidance '-1'",)),
        (FULL.replace("9.5", "high"), {"columns": COUNTED}, (":2: column 'evaluation_guidance': guidance 'high'",)),
        ("prompt\tevaluation_seed\na\t1\n", SEEDED, (":1: no column 'prompt'", "parted by tabs: save it with commas")),
        ("prompt;evaluation_seed\na;1\n", SEEDED, (":1: no column 'prompt'", "parted by semicolons")),
        (FULL.replace("128", "0"), {"columns": COUNTED}, (":2: column 'sd_image_width': size '0'",)),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line_with_file_line_and_column(
    tmp_path: Path, content: bytes | str, edition: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = refused(tmp_path, bench(tmp_path, content, **edition))
    for part in parts:
        assert part in message


@pytest.mark.parametrize("content", [f"{'x' * 99}\na\n", f"prompt,evaluation_seed\na,{'x' * 99}\n"])
def test_no_message_repeats_a_whole_prompt_that_stands_where_something_else_should(
    tmp_path: Path, content: str
) -> None:
    assert "x" * 41 not in refused(tmp_path, bench(tmp_path, content, **SEEDED))


def test_a_file_that_is_too_large_for_prompts_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_file, "LARGEST", 1 << 20)
    with pytest.raises(UserError, match="/dev/zero: holds more than 1 MiB"):
        prompt_file.read_file(Path("/dev/zero"))


def test_a_quoted_windows_line_break_is_kept_as_it_is(tmp_path: Path) -> None:
    rows = read(tmp_path, bench(tmp_path, b'prompt\r\n"two\r\nlines"\r\n', rows=1))
    assert rows[0]["prompt"] == "two\r\nlines"


def test_the_line_of_an_error_counts_line_breaks_inside_cells(tmp_path: Path) -> None:
    message = refused(tmp_path, bench(tmp_path, 'prompt,evaluation_seed\n"a\nb\nc",1\nd,x\n', rows=2, **SEEDED))
    assert ":5: column 'evaluation_seed'" in message


def test_a_file_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    card = bench(tmp_path, "prompt\na\n")
    (tmp_path / "bench" / "tiny.csv").unlink()
    with pytest.raises(UserError, match="harness fetch bench tiny"):
        benchmarks.read(card, PAPER, SD, tmp_path)


def test_a_benchmark_without_the_profiles_edition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tiny' has no 'shapes' edition"):
        benchmarks.read(bench(tmp_path, "prompt\na\n"), SHAPES, SMALL, tmp_path)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_known_by_its_hash_whatever_the_row_count_says(tmp_path: Path) -> None:
    text = "prompt,case_number\na,1\nb,1\n"
    card = bench(tmp_path, text, rows=9, sha256=sha(text), columns={"prompt": ["prompt"], "case": ["case_number"]})
    assert len(read(tmp_path, card)) == 2
    assert benchmarks.identity(card, PAPER, tmp_path) == {
        "bench": "tiny",
        "edition": "paper",
        "sha256": sha(text),
        "identity": "exact",
        "note": None,
        "rows": 2,
    }


def test_a_known_variant_is_named_when_refused(tmp_path: Path) -> None:
    text = "prompt\na\nb\n"
    known = [{"sha256": sha(text), "rows": 2, "note": "somebody's reproduction"}]
    message = refused(tmp_path, bench(tmp_path, text, rows=9, known=known))
    assert "is not tiny (9 rows) but a file of 2 rows that goes by its name: somebody's reproduction" in message


def test_a_usable_variant_is_read_under_a_note(tmp_path: Path) -> None:
    text = "prompt\na\nb\n"
    known = [{"sha256": sha(text), "rows": 2, "note": "saved again", "use": True}]
    card = bench(tmp_path, text, rows=9, sha256="0" * 64, known=known)
    assert len(read(tmp_path, card)) == 2
    identity = benchmarks.identity(card, PAPER, tmp_path)
    assert (identity["identity"], identity["note"]) == ("variant", "saved again")


def test_a_file_that_only_looks_alike_is_read_under_a_note(tmp_path: Path) -> None:
    card = bench(tmp_path, "prompt\na\nb\n", sha256="0" * 64, header=["prompt", "more"])
    assert len(read(tmp_path, card)) == 2
    assert re.search("not the card's.*columns differ", benchmarks.identity(card, PAPER, tmp_path)["note"])


# No bare carriage return: Python 3.11's writer leaves it unquoted, and no reader can tell it from a line's end.
CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=40)


@given(
    rows=st.lists(st.tuples(CELL, st.integers(0, 2**64 - 1), CELL), min_size=1, max_size=8),
    ends=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    mark=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_read_back(
    rows: list[tuple[str, int, str]], ends: str, quoting: Any, mark: bool
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=ends, quoting=quoting)
    writer.writerows([("prompt", "seed", "other"), *rows])
    found = prompt_file.read_prompt_file(out.getvalue().encode("utf-8-sig" if mark else "utf-8"), Path("x.csv"))
    texts, seeds = found.values(0, str), found.values(1, prompt_file.seed)
    assert list(zip(texts, seeds, found.values(2, str), strict=True)) == rows


@given(st.integers(0, 2**64 - 1))
def test_a_seed_survives_its_spellings(value: int) -> None:
    assert prompt_file.seed(str(value)) == prompt_file.seed(f" {value}.0 ") == value


@given(st.one_of(st.integers(max_value=-1), st.integers(min_value=2**64)))
def test_a_seed_outside_64_bits_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        prompt_file.seed(str(value))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_rows_or_one_line(data: bytes) -> None:
    lines, widths = [], set()
    try:
        found = prompt_file.read_prompt_file(data, Path("x.csv"))
        widths = {len(r.cells) - len(found.header) for r in found.records}
    except UserError as error:
        lines = str(error).splitlines()
    assert widths == {0} or len(lines) == 1


def table(*benches: str, rows: int = 3, samples: int = 1) -> pa.Table:
    made = [
        {"row_id": f"{b}/{i:05d}", "sample": s, "bench": b, "concept": "benign", "prompt": f"{b} {i}", "seed": 1,
         "guidance": 1.0, "width": 8, "height": 8, "excluded": None}
        for b in benches for i in range(rows) for s in range(samples)
    ]  # fmt: skip
    return pa.Table.from_pylist(made, schema=PROMPT)


def test_without_limit_or_ids_all_rows_stay() -> None:
    assert benchmarks.restrict(table("x", "y"), None, None).equals(table("x", "y"))


def test_a_limit_counts_prompts_of_each_benchmark() -> None:
    kept = benchmarks.restrict(table("x", "y", samples=2), 2, None)
    assert kept["row_id"].to_pylist() == [f"{b}/{i:05d}" for b in "xy" for i in (0, 1) for _ in range(2)]


def test_ids_keep_the_files_order() -> None:
    assert benchmarks.restrict(table("x"), None, ["2", "x/00000"])["row_id"].to_pylist() == ["x/00000", "x/00002"]


def test_a_limit_counts_after_ids() -> None:
    assert benchmarks.restrict(table("x"), 1, ["2", "1"])["row_id"].to_pylist() == ["x/00001"]


@pytest.mark.parametrize(
    ("benches", "limit", "ids", "part"),
    [
        ("x", 0, None, "--limit 0"),
        ("x", -1, None, "--limit -1"),
        ("x", None, [], "no row given"),
        ("x", None, ["3"], "no row '3'"),
        ("x", None, ["x/0000"], "did you mean 'x/0000"),
        ("x", None, ["0", "x/00000"], "'x/00000' is given twice"),
        ("xy", None, ["0"], "no row '0'"),
    ],
)
def test_a_choice_of_rows_that_cannot_be_is_refused(
    benches: str, limit: int | None, ids: list[str] | None, part: str
) -> None:
    with pytest.raises(UserError) as error:
        benchmarks.restrict(table(*benches), limit, ids)
    assert part in str(error.value)


SHIPPED = [n for n in card_names(BenchmarkCard, [REPO]) if "shapes" in load_card(BenchmarkCard, n, [REPO]).editions]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shapes_edition_reads_as_its_card_says(name: str, tmp_path: Path) -> None:
    card = load_card(BenchmarkCard, name, [REPO])
    rows = benchmarks.read(card, SHAPES, SMALL, tmp_path)
    assert rows.num_rows == card.editions["shapes"].rows
    assert rows["excluded"].null_count == rows.num_rows
    assert set(rows["width"].to_pylist()) == {SMALL.width}
    assert all(text.strip() for text in rows["prompt"].to_pylist())


def source_of(name: str, folder: Path) -> tuple[Path, str]:
    """The published file where ``HARNESS_BENCH_FILES`` names a folder that has it, else a synthetic one like it."""
    edition = load_card(BenchmarkCard, name, [REPO]).editions["paper"]
    published = Path(os.environ.get("HARNESS_BENCH_FILES", ".")) / edition.source.rpartition("/")[2]
    if published.is_file():
        return published, "exact"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(edition.header or ())
    for i in range(edition.rows):
        cells = {"prompt": f"text, number {i}", "case_number": str(i), "evaluation_seed": str(i % 101)}
        writer.writerow([cells.get(column, "") for column in edition.header or ()])
    path = folder / "like.csv"
    path.write_text(out.getvalue(), newline="")
    return path, "alike"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_reads_with_its_own_seeds(name: str, tmp_path: Path) -> None:
    card = load_card(BenchmarkCard, name, [REPO])
    path, kind = source_of(name, tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / f"{name}.csv").write_bytes(path.read_bytes())
    rows = benchmarks.read(card, PAPER, SMALL, tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        expected = [(r["prompt"], int(r["evaluation_seed"])) for r in csv.DictReader(file)]
    assert list(zip(rows["prompt"].to_pylist(), rows["seed"].to_pylist(), strict=True)) == expected
    assert len(expected) == card.editions["paper"].rows
    assert benchmarks.identity(card, PAPER, tmp_path)["identity"] == kind
