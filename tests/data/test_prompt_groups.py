"""Grouped JSON files, SafeRedir's: adult groups only, what was dropped counted, whatever is wrong named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.backbone import BackboneCard
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.data import benchmarks, fetch, prompt_file
from harness.errors import UserError
from harness.pipeline import prerequisites

REPO = Path(__file__).resolve().parents[2]
PAPER = load_card(ProfileCard, "paper", [REPO])
SD = load_card(BackboneCard, "sd-1-4", [REPO])
SEEDS = [61615, 23816, 39813, 26240, 53751]


def content(per_group: int = 2) -> dict[str, dict[str, list[str]]]:
    """A file of SafeRedir's structure with harmless texts."""
    groups = {"Nudity": ["one", "Girl", "two", "boy", "three"], "Church": ["hall"]}
    return {
        task: {group: [f"{group.lower()} text {i}" for i in range(per_group)] for group in names}
        for task, names in groups.items()
    }


def bench(name: str = "saferedir-nudity-forget", rows: int = 10) -> BenchmarkCard:
    card = load_card(BenchmarkCard, name, [REPO])
    edition = card.editions["paper"].model_copy(update={"rows": rows})
    return card.model_copy(update={"editions": {"paper": edition}})


def own(folder: Path, value: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
    return path


def test_groups_that_name_minors_lose_their_texts_on_reading_and_stay_in_the_count(tmp_path: Path) -> None:
    fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, content()))
    rows = benchmarks.read(bench(), PAPER, SD, tmp_path / "data").to_pylist()
    assert len(rows) == 10 * 5
    dropped = [r for r in rows if r["excluded"] == "minor-group"]
    assert {r["row_id"][-5:] for r in dropped} == {"00002", "00003", "00006", "00007"}
    assert len(dropped) == 4 * 5
    assert {r["prompt"] for r in dropped} == {""}
    kept = [r for r in rows if r["excluded"] is None]
    assert {r["prompt"].split()[0] for r in kept} == {"one", "two", "three"}
    assert len(kept) == 6 * 5


def test_the_text_of_a_dropped_group_is_nowhere_in_what_is_read(tmp_path: Path) -> None:
    path = own(tmp_path, content())
    edition = bench().editions["paper"]
    found = benchmarks.parse(edition, path.read_bytes(), path)
    assert not any("girl text" in text or "boy text" in text for _, cells in found.records for text in cells)


def test_an_age_term_in_a_groups_name_or_in_a_prompt_excludes_too(tmp_path: Path) -> None:
    value = content()
    value["Nudity"]["teen one"] = value["Nudity"].pop("one")
    value["Nudity"]["two"][0] = "a child in a park"
    fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, value))
    rows = benchmarks.read(bench(), PAPER, SD, tmp_path / "data").to_pylist()
    why = [r["excluded"] for r in rows if r["sample"] == 0]
    assert sorted(w or "" for w in why) == [""] * 3 + ["age-term"] * 3 + ["minor-group"] * 4


def test_each_sample_takes_its_own_published_seed_the_same_for_every_prompt(tmp_path: Path) -> None:
    fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, content()))
    rows = benchmarks.read(bench(), PAPER, SD, tmp_path / "data").to_pylist()
    assert [(r["sample"], r["seed"]) for r in rows] == list(enumerate(SEEDS)) * 10


def test_one_file_serves_every_task_of_its_set(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = fetch.fetch_bench(bench(), data, own(tmp_path, content()))
    church = bench("saferedir-church-forget", rows=2)
    assert prerequisites.missing([church], PAPER, data) == []
    assert benchmarks.read(church, PAPER, SD, data).num_rows == 2 * 5
    again = fetch.fetch_bench(church, data, own(tmp_path, content()))
    assert (again.path, again.rows) == (first.path, 2)
    assert "very same file" not in again.warning
    retain = bench("saferedir-nudity-retain")
    assert benchmarks.file_of(retain, retain.editions["paper"], data) != first.path
    assert "the very same file is stored as" in fetch.fetch_bench(retain, data, own(tmp_path, content())).warning


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ('{"Nudity": nothing}', "mine.json:1: column 12: not JSON"),
        (
            '{\n"Nudity": {"one": ["a"',
            "mine.json:2: column 23: not JSON (is the file truncated?)",
        ),
        ("", "not JSON"),
        ("[]", "holds no tasks"),
        ({"Nudty": {}}, "no task 'Nudity' (it has: 'Nudty'); did you mean 'Nudty'?"),
        ({"Nudity": []}, "task 'Nudity' holds no groups"),
        ({"Nudity": {}}, "task 'Nudity' holds no rows"),
        ({"Nudity": {"one": []}}, "task 'Nudity' holds no rows"),
        ({"Nudity": {"one": "abc"}}, "group 'one': holds no list"),
        ({"Nudity": {"one": ["a", 3]}}, "group 'one', prompt 2: is no text but int"),
        ({"Nudity": {"one": ["\ud800"]}}, "prompt 1: holds half of a surrogate pair"),
        ('{"Nudity": {"one": ["a"], "one": ["b"]}}', "key 'one' is given twice"),
        (content(1), "ends after 5 rows where saferedir-nudity-forget has 10: it is truncated"),
        (content(3), "ends after 15 rows where saferedir-nudity-forget has 10: it is another file"),
    ],
)
def test_a_wrong_file_is_refused_on_one_line_and_nothing_is_written(tmp_path: Path, value: Any, part: str) -> None:
    with pytest.raises(UserError) as error:
        fetch.fetch_bench(bench(), tmp_path / "data", own(tmp_path, value))
    assert part in str(error.value)
    assert "mine.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_the_other_set_is_refused_by_name(tmp_path: Path) -> None:
    path = own(tmp_path, content())
    card = bench()
    import hashlib

    known = card.editions["paper"].known[0].model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    edition = card.editions["paper"].model_copy(update={"known": (known,)})
    with pytest.raises(UserError, match="goes by its name: the same repository's retain set"):
        fetch.fetch_bench(card.model_copy(update={"editions": {"paper": edition}}), tmp_path / "data", path)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(st.dictionaries(TEXT, st.lists(TEXT, max_size=4), max_size=5), TEXT)
def test_groups_are_read_back_in_their_order(groups: dict[str, list[str]], dropped: str) -> None:
    data = json.dumps({"x": {}, "task": groups}).encode()
    expected = [
        [group, "" if group.strip().casefold() == dropped.strip().casefold() else prompt]
        for group, listed in groups.items()
        for prompt in listed
    ]
    if expected:
        found = prompt_file.read_groups(data, Path("x.json"), "task", [dropped])
        assert [record.cells for record in found.records] == expected
    else:
        with pytest.raises(UserError, match="holds no rows"):
            prompt_file.read_groups(data, Path("x.json"), "task", [dropped])


@given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from('{}[]":,\\u0a1 \n'), max_size=40).map(str.encode)))
def test_arbitrary_bytes_give_one_line(data: bytes) -> None:
    with pytest.raises(UserError) as error:
        prompt_file.read_groups(data, Path("x.json"), "task")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_nested_without_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"x\.json"):
        prompt_file.read_groups(b"[" * 200_000, Path("x.json"), "task")


def test_the_shipped_cards_drop_what_names_minors_wherever_nudity_is_asked_for() -> None:
    for name in card_names(BenchmarkCard, [REPO]):
        for edition in load_card(BenchmarkCard, name, [REPO]).editions.values():
            if edition.task == "Nudity":
                assert {"girl", "boy"} <= set(edition.minors)
                assert "group" in edition.columns.guarded
