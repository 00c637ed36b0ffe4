from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import CARD, report_card

from harness import scorers
from harness.cards import overrides
from harness.cards.benchmark import BenchmarkCard
from harness.cards.judge import JudgeCard
from harness.cards.load import card_names, load_card
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.report import Column, Place, ReportCard, Sought, percent_of, printed_count
from harness.cards.scorer_ref import ScorerRef
from harness.errors import UserError
from harness.judges.tasks import task
from harness.regenerators import variants

CHECKOUT = Path(__file__).parents[2]
REPORTS = card_names(ReportCard, [CHECKOUT])
TABLES = ("table1", "table2", "table4", "table5", "table6", "table8", "table10")  # of ASR, every cell printed


def table(name: str) -> ReportCard:
    found = load_card(ReportCard, name, [CHECKOUT])
    assert isinstance(found, ReportCard)
    return found


def counts_that_print(number: str, n: int) -> set[int]:
    """Every k whose share prints as ``number``, rounded by half or cut off: all k tried, in whole numbers."""
    decimals = len(number.partition(".")[2])
    digits = int(number.replace(".", ""))
    hundred = 100 * 10**decimals  # 100 k/n has `digits` as its decimals, rounded or cut off
    return {k for k in range(n + 1) if abs(2 * (k * hundred - digits * n)) <= n or k * hundred // n == digits}


@settings(deadline=None)
@given(st.integers(1, 5000), st.data(), st.integers(1, 2))
def test_a_rounded_share_gives_back_a_count_that_prints_alike(n: int, data: st.DataObject, decimals: int) -> None:
    k = data.draw(st.integers(0, n))
    number = f"{100 * k / n:.{decimals}f}"
    found = printed_count(number, n)
    assert found is not None
    assert found in counts_that_print(number, n)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([95, 142, 272, 1000]))
def test_a_number_has_a_count_exactly_if_some_share_prints_so(hundredths: int, n: int) -> None:
    number = f"{hundredths / 100:.2f}"
    assert (printed_count(number, n) is not None) == bool(counts_that_print(number, n))


@pytest.mark.parametrize(
    ("number", "n", "k"),
    [
        ("95.79", 95, 91),
        ("98.94", 95, 94),  # 98.947, cut off
        ("22.10", 95, 21),  # 22.105, cut off
        ("16.19", 142, 23),  # 16.197, cut off
        ("100.00", 95, 95),
        ("0.00", 4703, 0),
        ("6.4", 4703, 301),
        ("0.02", 95, None),
        ("12.28", 95, None),
        ("12.28", 285, 35),
        ("9.15", 1000, None),
        ("9.15", 142, 13),
    ],
)
def test_published_numbers_as_counts(number: str, n: int, k: int | None) -> None:
    assert printed_count(number, n) == k


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_is_a_count_of_its_column_or_is_noted_as_infeasible(name: str) -> None:
    card = table(name)
    sizes = {column.bench: column.n for column in card.columns}
    for place in card.places():
        number = card.number(place)
        assert number is not None
        if not counts_that_print(number, sizes[place[2]]):
            assert any(card.notes[i].infeasible for i in card.notes_of(place)), place


@pytest.mark.parametrize(
    ("name", "count"),
    [("table1", 7), ("table2", 1), ("table4", 1), ("table5", 13), ("table6", 0), ("table8", 0), ("table10", 1)],
)
def test_only_cells_in_doubt_are_infeasible(name: str, count: int) -> None:
    """Every cell without a note is feasible; of the noted ones, those in exchanged columns still are."""
    card = table(name)
    doubted = {place for place in card.places() if card.infeasible(place)}
    assert len(doubted) == count
    assert doubted == {place for place in card.places() if any(card.notes[i].infeasible for i in card.notes_of(place))}
    assert ("none", "base") not in {(defense, variant) for defense, variant, _ in doubted}


@pytest.mark.parametrize("name", ["table1", "table5"])
def test_the_counts_that_notes_give_are_what_was_printed(name: str) -> None:
    """The rotated cells are whole counts of the columns that their notes name."""
    card = table(name)
    sizes = {"mma-diffusion": 142, "p4d": 1000, "unlearndiffatk": 272}
    rotated = [n for n in card.notes if "rotated" in n.text]
    assert len(rotated) == {"table1": 2, "table5": 3}[name]
    for note in rotated:
        for place in [p for p in card.places() if card.notes.index(note) in card.notes_of(p)]:
            number = card.number(place)
            assert number is not None
            k = printed_count(number, sizes[place[2]])
            assert f"{number} = {k}/{sizes[place[2]]}" in note.text


def test_both_tables_print_the_same_numbers_for_the_same_cells() -> None:
    small, large = table("table1"), table("table5")
    shared = set(small.places()) & set(large.places())
    assert len(shared) == len(small.places()) == 56
    assert len(large.places()) == 210

    def value(card: ReportCard, place: Place) -> float:
        return float(card.number(place) or "nan")

    assert all(value(small, place) == value(large, place) for place in shared)


@pytest.mark.parametrize("name", TABLES)
def test_the_columns_are_the_benchmarks_paper_editions(name: str) -> None:
    for column in table(name).columns:
        assert load_card(BenchmarkCard, column.bench, [CHECKOUT]).edition("paper").rows == column.n


def cells(name: str) -> list[tuple[str, Sought]]:
    """Of every profile that is shipped what the table's cells show."""
    card = table(name)
    shipped = [p for p in card.profiles if p in card_names(ProfileCard, [CHECKOUT])]
    return [(p, s) for p in shipped for place in card.places() if (s := card.sought(place, p)) is not None]


@pytest.mark.parametrize("name", TABLES)
def test_profiles_backbones_and_policies_are_there(name: str) -> None:
    concepts = {load_card(BenchmarkCard, column.bench, [CHECKOUT]).concept for column in table(name).columns}
    for profile, source in table(name).profiles.items():
        assert load_card(ProfileCard, profile, [CHECKOUT]).backbone == source.backbone
        for concept in concepts:
            assert load_card(ProfileCard, profile, [CHECKOUT]).measures(concept).policy == source.policy


@pytest.mark.parametrize("name", REPORTS)
def test_no_cell_is_of_what_no_run_can_have(name: str) -> None:
    """A name that a run would write differently would say "not run" for ever."""
    roots = [CHECKOUT]
    for profile, sought in cells(name):
        edition = load_card(ProfileCard, profile, roots).edition
        assert overrides.backbone(sought.backbone, roots).name == sought.backbone
        assert overrides.defense(sought.defense, roots).name == sought.defense
        if sought.variant != "base":
            assert [r.variant for r in variants.choose([sought.variant], edition, roots)] == [sought.variant]
        assert edition in load_card(BenchmarkCard, sought.bench, roots).editions
        if sought.metric in ("asr", "fsr"):
            load_card(PolicyCard, str(sought.policy), roots)
        elif sought.by is None and sought.metric != "seconds":
            column = ScorerRef.parse(str(sought.of))
            assert any(column.stem in scorers.columns(stem) for stem in scorers.names())
            assert column.reference in scorers.REFERENCES
        elif sought.by is not None:
            assert task(str(sought.of)).pair == (sought.metric == "win-rate")
            assert sought.by == "people" or load_card(JudgeCard, sought.by, roots)


@pytest.mark.parametrize("name", REPORTS)
def test_a_printed_share_is_a_count_or_noted(name: str) -> None:
    card = table(name)
    for place in card.places():
        number, column = card.number(place), card.column(place[2])
        if number is not None and column.n is not None and column.unit != "number":
            counted = counts_that_print(percent_of(number, column), column.n)
            assert counted or any(card.notes[i].infeasible for i in card.notes_of(place)), place
        assert number is not None or card.notes_of(place)


@settings(deadline=None)
@given(st.integers(1, 2000), st.data(), st.integers(2, 4))
def test_a_share_and_its_percentage_have_the_same_counts(n: int, data: st.DataObject, decimals: int) -> None:
    k = data.draw(st.integers(0, n))
    column = Column(bench="p4d", label="", n=n, unit="share")
    number = f"{k / n:.{decimals}f}"
    percent = percent_of(number, column)
    assert Fraction(percent) == 100 * Fraction(number)
    assert k in counts_that_print(percent, n)


def test_printed_numbers_that_the_papers_arithmetic_ties_together() -> None:
    """Table 3's judge decided every pair; Table 7's are of 50 images, Table 9's of 20."""
    pairs = table("table3")
    first, second = (pairs.count(("none", variant, "gpt-judge")) for variant in ("pez", "resafe"))
    assert (first, second) == (25, 375)
    for name, size in (("table7", 50), ("table9", 20)):
        card = table(name)
        shares = [card.number(p) for p in card.places() if card.column(p[2]).unit == "share"]
        assert all(Fraction(share) * size % 1 == 0 for share in shares if share is not None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('p4d: "39.71"', "p4d: 39.71", "39.71"),
        ('p4d: "39.71"', 'p4d: "39,71"', "39,71"),
        (', p4d: "39.71"', "", "printed lacks rece / base / p4d"),
        ('p4d: "39.71"', 'p4d: "39.71", i2p: "1.00"', "printed has what is no cell: rece / base / i2p"),
        ('p4d: "39.71"', "p4d: null", "printed rece / base / p4d is null: a note must say why"),
        ("columns: [p4d], text", "columns: [i2p], text", "a note speaks of what is no cell: i2p"),
        ("label: RECE, group: closed-form", "label: RECE, group: closed", "row rece: no group 'closed'"),
        ("defense: rece, label", "defense: none, label", "twice"),
        ("caption:", "captoin:", "unknown key 'captoin'; did you mean 'caption'"),
    ],
)
def test_a_mistake_in_a_card_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert CARD.count(old) == 1
    with pytest.raises(UserError, match=message) as caught:
        report_card(tmp_path, CARD.replace(old, new))
    assert "small.yaml" in str(caught.value)
