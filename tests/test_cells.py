from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from harness import cells
from harness.cards import PolicyCard, Rule
from harness.cells import Cell
from harness.conservation import ConservationError
from harness.measure import Origin, measure
from harness.errors import UserError

FATES = ("unsafe", "safe", "excluded", "error", "probe_error")


def policy(name: str = "probe-0.5", column: str = "probe_a", threshold: float = 0.5) -> PolicyCard:
    return PolicyCard(
        name=name,
        path=Path("x.yaml"),
        root=Path(),
        summary="",
        version=1,
        cites="",
        concept="nudity",
        scorer="probe",
        rule=Rule(any_of=(column,), op=">", threshold=threshold),
    )


def row(i: int, fate: str, defense: str = "none", bench: str = "b", sample: int = 0, **more: Any) -> dict[str, Any]:
    """One scored row; ``fate`` is one of FATES, or "lost" for a score that is missing without a reason."""
    score = {"unsafe": 0.9, "safe": 0.1}.get(fate)
    found = {
        "row_id": f"{bench}/{i:05d}",
        "sample": sample,
        "bench": bench,
        "concept": "nudity",
        "profile": "p",
        "backbone": "q",
        "defense": defense,
        "variant": "base",
        "excluded": "age-term" if fate == "excluded" else None,
        "error": "generate:crash" if fate == "error" else None,
        "degenerate": None,
        "probe_error": "undecodable" if fate == "probe_error" else None,
        "probe_a": score,
        "probe_b": score,
    }
    return found | more


SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("row_id", "bench", "concept", "profile", "backbone", "defense", "variant")]
    + [(n, pa.string()) for n in ("excluded", "error", "degenerate", "probe_error")]
    + [("sample", pa.int32()), ("probe_a", pa.float32()), ("probe_b", pa.float32())]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def asr(found: list[Cell], defense: str = "none") -> Cell:
    return next(c for c in found if c.metric == "asr" and c.main and c.defense == defense)


def went_in(rows: int, total: int | None = None, **more: Any) -> Origin:
    ids = pa.table({"row_id": [f"b/{i:05d}" for i in range(rows)], "sample": pa.array([0] * rows, pa.int32())})
    return Origin(rows=ids, total=rows if total is None else total, **more)


@settings(deadline=None)
@given(st.lists(st.sampled_from(FATES), min_size=1, max_size=40))
def test_every_row_is_counted_once_whatever_became_of_it(fates: list[str]) -> None:
    found = asr(measure(table([row(i, f) for i, f in enumerate(fates)]), {"nudity": [policy()]}))
    assert found.k == fates.count("unsafe")
    assert found.n == fates.count("unsafe") + fates.count("safe")
    assert found.errors == fates.count("error") + fates.count("probe_error")
    assert found.excluded == fates.count("excluded")
    assert found.n + found.errors + found.excluded == len(fates)
    assert sum(found.reasons.values()) == found.errors + found.excluded


@settings(deadline=None)
@given(st.lists(st.sampled_from(FATES), min_size=1, max_size=40))
def test_the_interval_is_wilsons_over_the_scored_rows(fates: list[str]) -> None:
    found = asr(measure(table([row(i, f) for i, f in enumerate(fates)]), {"nudity": [policy()]}))
    if found.n == 0:
        assert (found.value, found.low, found.high) == (None, None, None)
    else:
        assert (found.low, found.high) == pytest.approx(proportion_confint(found.k, found.n, method="wilson"), abs=1e-9)
        assert found.value == found.k / found.n


def test_a_missing_verdict_without_a_reason_is_refused_by_name() -> None:
    rows = [row(0, "safe"), row(1, "lost"), row(2, "unsafe")]
    with pytest.raises(ConservationError, match=r"1 neither scored, errored nor excluded \(such as b/00001\)"):
        measure(table(rows), {"nudity": [policy()]})


def test_a_row_that_is_there_twice_is_refused_by_name() -> None:
    with pytest.raises(ConservationError, match=r"b/00000.*2 times"):
        measure(table([row(0, "safe"), row(0, "safe"), row(1, "unsafe")]), {"nudity": [policy()]})


def test_the_same_row_under_two_defenses_or_samples_is_no_duplicate() -> None:
    rows = [row(0, "safe"), row(0, "safe", sample=1), row(0, "safe", defense="d")]
    assert len(measure(table(rows), {"nudity": [policy()]})) == 4


def test_a_row_that_went_in_and_did_not_come_out_is_named() -> None:
    with pytest.raises(ConservationError, match=r"3 rows went in and 2 came out; 1 lost \(such as b/00001\)"):
        measure(table([row(0, "safe"), row(2, "safe")]), {"nudity": [policy()]}, {("none", "base", "b"): went_in(3)})


def test_a_row_that_never_went_in_is_named() -> None:
    with pytest.raises(ConservationError, match=r"1 not of this run \(such as b/00001\)"):
        measure(table([row(0, "safe"), row(1, "safe")]), {"nudity": [policy()]}, {("none", "base", "b"): went_in(1)})


def test_a_defense_of_which_nothing_came_out_is_named() -> None:
    known = {("none", "base", "b"): went_in(1), ("rece", "base", "b"): went_in(1)}
    with pytest.raises(ConservationError, match="rece on b: 1 rows went in and none came out"):
        measure(table([row(0, "safe")]), {"nudity": [policy()]}, known)


def test_an_excluded_row_counts_as_excluded_even_if_it_failed_too() -> None:
    found = asr(measure(table([row(0, "excluded", error="generate:crash"), row(1, "safe")]), {"nudity": [policy()]}))
    assert (found.n, found.errors, found.excluded) == (1, 0, 1)


def test_another_scorers_failure_costs_a_policy_nothing() -> None:
    rows = table([row(0, "safe")]).append_column("other_error", pa.array(["hang"]))
    assert asr(measure(rows, {"nudity": [policy()]})).errors == 0


def test_degenerate_pictures_are_counted_of_those_drawn() -> None:
    rows = [
        row(0, "safe", degenerate="black"),
        row(1, "unsafe"),
        row(2, "probe_error", degenerate="noise"),
        row(3, "error"),
        row(4, "excluded"),
    ]
    found = measure(table(rows), {"nudity": [policy()]})[-1]
    assert (found.metric, found.k, found.n, found.errors, found.excluded) == ("degenerate", 2, 3, 1, 1)
    assert (found.policy, found.scorer, found.compared) == (None, None, None)


def test_policies_come_out_in_their_order_and_the_first_is_the_main_one() -> None:
    chosen = {"nudity": [policy("first"), policy("second", "probe_b", 0.05)]}
    found = measure(table([row(0, "safe"), row(1, "unsafe")]), chosen)
    assert [(c.policy, c.main, c.k) for c in found] == [("first", True, 1), ("second", False, 2), (None, False, 0)]


def test_groups_come_out_in_the_tables_order() -> None:
    rows = [row(i, "safe", d, b) for b in ("z", "a") for d in ("none", "uce", "rece") for i in range(2)]
    found = [c for c in measure(table(rows), {"nudity": [policy()]}) if c.main]
    assert [(c.bench, c.defense) for c in found] == [(b, d) for b in ("z", "a") for d in ("none", "uce", "rece")]


def test_a_concept_without_policy_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="no policy for concept 'nudity'"):
        measure(table([row(0, "safe")]), {"violence": [policy()]})


def test_a_part_of_a_benchmark_is_stamped_and_a_whole_one_is_not() -> None:
    rows = table([row(0, "safe"), row(1, "safe")])
    chosen = {"nudity": [policy()]}
    assert asr(measure(rows, chosen, {("none", "base", "b"): went_in(2, total=95)})).subset == "2/95"
    assert asr(measure(rows, chosen, {("none", "base", "b"): went_in(2)})).subset is None


def test_fingerprints_and_settings_travel_with_the_cell() -> None:
    known = {("none", "base", "b"): went_in(1, fingerprints=("generate:ab",), settings={"seed": 7})}
    found = asr(measure(table([row(0, "safe")]), {"nudity": [policy()]}, known))
    assert (found.fingerprints, found.settings) == (("generate:ab",), {"seed": 7})


def test_several_samples_of_a_prompt_widen_the_interval() -> None:
    """Ten alike samples of each of ten prompts say no more than ten prompts."""
    fates = ["unsafe" if i < 5 else "safe" for i in range(10)]
    rows = [row(i, f, sample=s) for i, f in enumerate(fates) for s in range(10)]
    found = asr(measure(table(rows), {"nudity": [policy()]}))
    low, high = proportion_confint(5, 10, method="wilson")
    assert found.interval == "bootstrap"
    assert (found.k, found.n) == (50, 100)
    assert found.low == pytest.approx(low, abs=0.06)
    assert found.high == pytest.approx(high, abs=0.06)


def test_several_samples_that_all_agree_are_as_sure_as_their_prompts() -> None:
    rows = [row(i, "safe", sample=s) for i in range(10) for s in range(10)]
    found = asr(measure(table(rows), {"nudity": [policy()]}))
    assert (found.low, found.high) == pytest.approx(proportion_confint(0, 10, method="wilson"), abs=1e-9)


def test_a_defense_is_compared_with_none_on_the_rows_that_both_have() -> None:
    none = [row(i, "unsafe") for i in range(8)] + [row(8, "safe"), row(9, "unsafe")]
    rece = [row(i, "safe", "rece") for i in range(8)] + [row(8, "unsafe", "rece"), row(9, "error", "rece")]
    found = measure(table(none + rece), {"nudity": [policy()]})
    compared = asr(found, "rece").compared
    assert compared is not None
    assert (compared.against, compared.pairs) == ("none/base", 9)
    assert (compared.only_reference, compared.only_method) == (8, 1)
    assert compared.p == pytest.approx(2 * (1 + 9) / 2**9)  # two-sided binomial tail of 1 in 9
    own = asr(found).compared
    assert own is not None
    assert own.against is None
    assert own.p is None


def test_cells_survive_their_file(tmp_path: Path) -> None:
    rows = [row(0, "safe"), row(1, "excluded"), row(0, "unsafe", "uce"), row(1, "excluded", "uce")]
    known = {("none", "base", "b"): went_in(2, 95, fingerprints=("generate:ab",)), ("uce", "b"): went_in(2, 95)}
    found = measure(table(rows), {"nudity": [policy()]}, known)
    cells.write(tmp_path / "cells.json", found)
    assert cells.read(tmp_path / "cells.json") == found


def test_a_cell_has_the_keys_that_scripts_rely_on() -> None:
    keys = {"profile", "backbone", "defense", "variant", "bench", "concept", "metric", "scorer", "policy"}
    counts = {"k", "n", "errors", "excluded", "low", "high", "value", "reference", "fingerprints", "subset"}
    found = measure(table([row(0, "safe")]), {"nudity": [policy()]})
    assert all(keys | counts <= cell.to_json().keys() for cell in found)


@pytest.mark.parametrize("content", ["", "{}", "[{}]", "[1]", '{"k": 1}', "null"])
def test_a_damaged_file_of_cells_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cells.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"cells\.json: not the cells of a run"):
        cells.read(path)
