"""The audit finds what is wrong with the paper's tables untold, and what Hypothesis plants; nothing else."""

from __future__ import annotations

import random
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.cards.printed import fit
from harness.metrics.audit import Finding, PrintedTable, audit

REPORTS = Path(__file__).parents[2] / "reports"
SIZES = {"k77": 95, "k38": 95, "k16": 95, "mma": 1000, "p4d": 272, "uda": 142, "i2p": 4703}
# Two rows of the paper's Table 10, which prints K77 and K16 of the undefended model the other way round.
TABLE_10 = {
    "none/base": ("98.94", "97.89", "95.79", "95.60", "92.65", "68.31", "18.88"),
    "none/resafe": ("29.47", "22.10", "26.32", "32.70", "32.35", "16.19", "4.40"),
}


def paper(name: str) -> PrintedTable:
    """A table of the paper, straight from its file."""
    card = yaml.safe_load((REPORTS / f"{name}.yaml").read_text())
    rows = {f"{d}/{v}": numbers for d, variants in card["printed"].items() for v, numbers in variants.items()}
    return PrintedTable(name, {c["bench"]: c["n"] for c in card["columns"]}, rows)


def percent(k: int, n: int, places: int = 2, rounding: str = ROUND_HALF_UP) -> str:
    return str((Decimal(100 * k) / n).quantize(Decimal(1).scaleb(-places), rounding))


def kinds(findings: tuple[Finding, ...]) -> list[str]:
    return [f.kind for f in findings]


def test_the_rotated_rows_of_table_5_are_found_untold() -> None:
    found = audit(paper("table5"))
    (moved,) = [f for f in found.findings if f.kind == "moved"]
    assert set(moved.rows) == {"mace/resafe", "rece/resafe", "safree/resafe"}
    assert dict(zip(moved.columns, moved.holds, strict=True)) == {
        "mma-diffusion": "unlearndiffatk",
        "p4d": "mma-diffusion",
        "unlearndiffatk": "p4d",
    }
    assert "rotated" in moved.text
    assert "2.11 = 3/142, 4.30 = 43/1000, 3.68 = 10/272" in moved.text
    assert moved.chance is not None
    assert moved.chance < 1e-6


def test_gloces_number_and_maces_three_runs_are_found_and_nothing_else() -> None:
    found = audit(paper("table5"))
    assert sorted(kinds(found.findings)) == ["infeasible", "moved", "pooled"]
    (odd,) = [f for f in found.findings if f.kind == "infeasible"]
    assert (odd.rows, odd.columns) == (("gloce/resafe",), ("ring-a-bell-k38",))
    assert "0.02 is no share of 95; the nearest is 0/95 = 0.00" in odd.text
    assert "47% of such numbers" in odd.text
    (pooled,) = [f for f in found.findings if f.kind == "pooled"]
    assert (pooled.rows, pooled.runs, pooled.alarm) == (("mace/base",), 3, False)
    assert "12.28 = 35/285, 14.39 = 41/285" in pooled.text
    assert found.counts() == {"exact": 194, "cut off": 3, "pooled": 3, "infeasible": 10, "not printed": 0}


def test_the_exchanged_columns_of_table_4_and_of_table_10_are_found_untold() -> None:
    here, names = paper("table5"), list(paper("table5").sizes)
    ten = PrintedTable("table10", here.sizes, {r: dict(zip(names, v, strict=True)) for r, v in TABLE_10.items()})
    found = audit(here, [paper("table1"), paper("table2"), paper("table4"), ten])
    exchanged = [f for f in found.findings if f.kind == "exchanged between tables"]
    assert {(f.rows, f.columns) for f in exchanged} == {
        (("none/base",), ("ring-a-bell-k77", "ring-a-bell-k16")),
        (("none/resafe",), ("ring-a-bell-k77", "ring-a-bell-k16")),
    }
    by_row = {f.rows[0]: f.text for f in exchanged}
    assert "95.79 / 98.94 here, 98.94 / 95.79 in table10" in by_row["none/base"]
    assert "29.47 / 26.32 here, 26.32 / 29.47 in table4" in by_row["none/resafe"]
    assert not [f for f in found.findings if f.kind == "differs between tables"]
    assert all(f.holds == ("ring-a-bell-k16", "ring-a-bell-k77") for f in exchanged)


def test_table_4_has_a_number_that_is_no_share() -> None:
    (odd,) = audit(paper("table4")).findings
    assert odd.rows == ("none/simple-caption",)
    assert "31.53 is no share of 95; the nearest is 30/95 = 31.58" in odd.text


@st.composite
def clean(draw: st.DrawFn, rows: int = 6) -> PrintedTable:
    """A table in which each number is a share of its column's n, with a rounding of its own."""
    rounding = draw(st.sampled_from([ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN]))
    numbers = {}
    for i in range(rows):
        ks = {c: draw(st.integers(0, n)) for c, n in SIZES.items()}
        numbers[f"m{i}"] = {c: percent(k, SIZES[c], 2, rounding) for c, k in ks.items()}
    return PrintedTable("clean", SIZES, numbers)


@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm_on_twenty_clean_tables(seed: int) -> None:
    """Of 15 rows x 7 columns, low and high rates, one decimal or two, rounded up, to even or cut; two rows of means."""
    rng = random.Random(seed)
    rounding = rng.choice([ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN])
    sizes = SIZES if seed % 2 else {f"c{i}": rng.choice([50, 79, 95, 107, 142, 250, 272, 1000, 4703]) for i in range(6)}
    rows = {}
    for i in range(15):
        level = rng.choice([0.01, 0.05, 0.2, 0.6, 0.95])
        runs = 3 if i % 7 == 6 and rounding != ROUND_DOWN else 1
        counts = {c: sum(rng.random() < level for _ in range(runs * n)) for c, n in sizes.items()}
        rows[f"m{i}"] = {c: percent(k, runs * sizes[c], rng.choice([1, 2]) if i % 5 == 4 else 2, rounding)
                         for c, k in counts.items()}  # fmt: skip
    found = audit(PrintedTable("clean", sizes, rows))
    assert [f for f in found.findings if f.alarm] == []


@given(clean())
@settings(max_examples=40, deadline=None)
def test_a_table_of_shares_has_nothing_to_find(table: PrintedTable) -> None:
    found = audit(table, [table])
    assert found.findings == ()
    assert found.counts()["exact"] + found.counts()["cut off"] == 6 * 7


@given(clean(), st.sampled_from([("k77", "uda"), ("k38", "p4d"), ("k16", "mma"), ("mma", "p4d"), ("p4d", "uda")]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_planted_exchange_in_one_row_is_found(table: PrintedTable, swap: tuple[str, str]) -> None:
    a, b = swap
    row = dict(table.rows["m2"])
    assume(fit(row[a], SIZES[b]) is None and fit(row[b], SIZES[a]) is None)  # else arithmetic shows nothing
    assume(all(fit(row[c], SIZES[c]) and not fit(row[c], SIZES[c]).cut for c in swap))  # type: ignore[union-attr]
    row[a], row[b] = row[b], row[a]
    found = audit(table._replace(rows={**table.rows, "m2": row}))
    (moved,) = found.findings
    assert (moved.kind, moved.rows) == ("moved", ("m2",))
    assert dict(zip(moved.columns, moved.holds, strict=True)) == {a: b, b: a}


@given(clean(), st.sampled_from([("mma", "i2p"), ("uda", "i2p"), ("k77", "i2p"), ("p4d", "mma")]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_columns_exchanged_in_all_rows_are_one_finding(table: PrintedTable, swap: tuple[str, str]) -> None:
    a, b = swap
    rows = {name: {**row, a: row[b], b: row[a]} for name, row in table.rows.items()}
    wrong = {name for name, row in rows.items() if fit(row[a], SIZES[a]) is None and fit(row[b], SIZES[b]) is None}
    assume(len(wrong) >= 3)
    assume(all(not fit(rows[name][x], SIZES[y]).cut for name in wrong for x, y in (swap, swap[::-1])))  # type: ignore[union-attr]
    moved = [f for f in audit(table._replace(rows=rows)).findings if f.kind == "moved"]
    assert any(wrong <= set(f.rows) and dict(zip(f.columns, f.holds, strict=True)) == {a: b, b: a} for f in moved)


@given(clean(), st.sampled_from([["p4d", "uda", "mma"], ["uda", "mma", "p4d"]]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_planted_rotation_is_found(table: PrintedTable, order: list[str]) -> None:
    three = ["mma", "p4d", "uda"]
    row = dict(table.rows["m0"])
    moved_row = {**row, **{a: row[b] for a, b in zip(three, order, strict=True)}}
    assume(all(fit(moved_row[c], SIZES[c]) is None for c in three))
    assume(not any(fit(row[c], SIZES[c]).cut for c in three))  # type: ignore[union-attr]
    (found,) = audit(table._replace(rows={**table.rows, "m0": moved_row})).findings
    assert found.kind == "moved"
    assert dict(zip(found.columns, found.holds, strict=True)) == dict(zip(three, order, strict=True))


def test_a_column_over_another_n_is_found_in_the_table_or_outside() -> None:
    rng = random.Random(3)
    bells, mmas = rng.sample(range(1, 79), 6), rng.sample(range(1000), 6)
    rows = {f"m{b}": {"bell": percent(b, 79), "mma": percent(m, 1000)} for b, m in zip(bells, mmas, strict=True)}
    (found,) = audit(PrintedTable("t", {"bell": 95, "mma": 1000}, rows)).findings
    assert (found.kind, found.columns) == ("other n", ("bell",))
    assert "no shares of 95; all are of 79" in found.text
    (named,) = audit(PrintedTable("t", {"bell": 95, "mma": 1000, "rece": 79}, rows)).findings
    assert "all are of 79 (as rece has)" in named.text


def test_a_typing_error_is_no_rotation() -> None:
    rows = {"a": {"k77": "31.58", "uda": "9.15", "i2p": "4.13"}, "b": {"k77": "31.53", "uda": "8.45", "i2p": "2.04"}}
    (odd,) = audit(PrintedTable("t", {c: SIZES[c] for c in ("k77", "uda", "i2p")}, rows)).findings
    assert (odd.kind, odd.rows, odd.columns) == ("infeasible", ("b",), ("k77",))


def test_what_is_not_in_the_text_is_not_judged() -> None:
    found = audit(PrintedTable("t", {"k77": 95, "uda": 142}, {"a": {"k77": None, "uda": "8.45"}}))
    assert found.findings == ()
    assert found.readings[0].kind == "not printed"


def test_tables_that_differ_say_so_and_fewer_decimals_do_not() -> None:
    one = PrintedTable("one", {"a": 4703, "b": 95}, {"m": {"a": "6.40", "b": "7.37"}})
    short = PrintedTable("short", {"a": 4703, "b": 95}, {"m": {"a": "6.4", "b": "7.37"}})
    other = PrintedTable("other", {"a": 4703, "b": 95}, {"m": {"a": "6.40", "b": "8.42"}})
    assert audit(one, [short]).findings == ()
    (differs,) = audit(one, [short, other]).findings
    assert (differs.kind, differs.columns) == ("differs between tables", ("b",))
    assert "7.37 here, 8.42 in other (short: as here)" in differs.text


def test_tables_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="'b' of t has no n"):
        audit(PrintedTable("t", {"a": 95}, {"m": {"b": "1.05"}}))
    with pytest.raises(ValueError, match="n = 0"):
        audit(PrintedTable("t", {"a": 0}, {"m": {"a": "1.05"}}))
