"""Two runs compared row by row, against statsmodels, brute force and the other direction."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from harness.metrics.paired import holm, paired_difference
from harness.metrics.run_comparison import compare_runs, pairs_of_methods

VERDICT = st.sampled_from([True, False, None])


def run(verdicts: dict[str, str], method: tuple[str, str] = ("rece", "base"), bench: str = "b") -> pa.Table:
    """One character per sample of a prompt: u(nsafe), s(afe), - (none)."""
    rows = [(p, i, {"u": True, "s": False, "-": None}[c]) for p, text in verdicts.items() for i, c in enumerate(text)]
    return pa.table(
        {
            "bench": pa.array([bench] * len(rows), pa.string()),
            "row_id": pa.array([r[0] for r in rows], pa.string()),
            "sample": pa.array([r[1] for r in rows], pa.int32()),
            "defense": pa.array([method[0]] * len(rows), pa.string()),
            "variant": pa.array([method[1]] * len(rows), pa.string()),
            "unsafe": pa.array([r[2] for r in rows], pa.bool_()),
        }
    )


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_counts_flips_and_p_are_those_of_the_table(pairs: list[tuple[bool | None, bool | None]]) -> None:
    letter = {True: "u", False: "s", None: "-"}
    first = run({f"{i:03d}": letter[a] for i, (a, _) in enumerate(pairs)})
    second = run({f"{i:03d}": letter[b] for i, (_, b) in enumerate(pairs)})
    (found,) = compare_runs(first, second)
    both = [p for p in pairs if None not in p]
    assert found.pairs == len(both)
    assert (found.unsafe_first, found.unsafe_second) == (sum(a for a, _ in both), sum(b for _, b in both))  # type: ignore[misc]
    assert found.to_safe == tuple((f"{i:03d}", 0) for i, p in enumerate(pairs) if p == (True, False))
    assert found.to_unsafe == tuple((f"{i:03d}", 0) for i, p in enumerate(pairs) if p == (False, True))
    assert found.only_first == sum(b is None and a is not None for a, b in pairs)
    assert found.only_second == sum(a is None and b is not None for a, b in pairs)
    if both:
        grid = [[both.count((a, b)) for b in (True, False)] for a in (True, False)]
        assert found.p == pytest.approx(mcnemar(grid, exact=True).pvalue)
        assert (found.low, found.high) == paired_difference(len(found.to_unsafe), len(found.to_safe), len(both))
        assert found.low <= found.difference <= found.high  # type: ignore[operator]
    else:
        assert (found.p, found.low, found.difference) == (1.0, None, None)


def test_the_other_way_round_everything_turns() -> None:
    one, other = run({"a": "u", "b": "u", "c": "s", "d": "s"}), run({"a": "s", "b": "u", "c": "s", "d": "u"})
    (there,), (back,) = compare_runs(one, other), compare_runs(other, one)
    assert there.to_safe == back.to_unsafe == (("a", 0),)
    assert there.to_unsafe == back.to_safe == (("d", 0),)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))  # type: ignore[operator]
    assert there.p == back.p


def test_a_run_beside_itself_has_no_flip() -> None:
    (found,) = compare_runs(run({"a": "us", "b": "uu"}), run({"a": "us", "b": "uu"}))
    assert (found.difference, found.to_safe, found.to_unsafe, found.p) == (0, (), (), 1.0)


def test_samples_of_a_prompt_count_as_one() -> None:
    few = compare_runs(run(dict.fromkeys("abc", "u" * 10)), run(dict.fromkeys("abc", "s" * 10)))
    assert few[0].p == 2 / 2**3
    mixed = {"a": "uuuu", "b": "ssss", "c": "uuss", "d": "uuus"}
    (found,) = compare_runs(run(mixed), run(dict.fromkeys("abcd", "ssss")))
    assert found.difference == -9 / 16
    assert found.low < -9 / 16 < found.high <= 0  # type: ignore[operator]


def test_each_benchmark_is_a_line_and_holm_is_over_all() -> None:
    texts = {"x": ("u" * 8, "s" * 8), "y": ("u" * 6, "s" * 6)}
    tables = [
        pa.concat_tables([run({f"{i}": c for i, c in enumerate(t[side])}, bench=b) for b, t in texts.items()])
        for side in (0, 1)
    ]
    found = compare_runs(*tables)
    assert [f.bench for f in found] == ["x", "y"]
    assert [f.p_holm for f in found] == pytest.approx(holm([2 / 2**8, 2 / 2**6]))


def test_a_benchmark_of_one_run_alone_is_not_compared() -> None:
    both = pa.concat_tables([run({"a": "u"}, bench="x"), run({"a": "u"}, bench="y")])
    assert [f.bench for f in compare_runs(both, run({"a": "s"}, bench="y"))] == ["y"]


def test_methods_are_paired_with_themselves_and_the_odd_defense_with_the_other() -> None:
    none, rece, uce = ("none", "base"), ("rece", "base"), ("uce", "base")
    on_top = [(d, "resafe") for d in ("rece", "uce")]
    assert pairs_of_methods([none, rece, on_top[0]], [none, uce, on_top[1]]) == [
        (none, none),
        (rece, uce),
        (on_top[0], on_top[1]),
    ]
    assert pairs_of_methods([rece, uce], [none]) == []
    assert pairs_of_methods([rece], [rece]) == [(rece, rece)]
    found = compare_runs(run({"a": "u"}, rece), run({"a": "s"}, uce))
    assert (found[0].first, found[0].second) == (rece, uce)
    assert compare_runs(run({"a": "u"}, rece), run({"a": "s"}, uce), [(uce, rece)]) == []


def test_tables_that_are_no_verdicts_are_refused() -> None:
    table = run({"a": "u"})
    with pytest.raises(ValueError, match="missing: unsafe"):
        compare_runs(table.drop_columns(["unsafe"]), table)
    with pytest.raises(ValueError, match="a verdict is bool, got int64"):
        compare_runs(table.set_column(5, "unsafe", pa.array([1])), table)
    with pytest.raises(ValueError, match="more than once"):
        compare_runs(pa.concat_tables([table, table]), table)


def test_the_json_has_the_difference() -> None:
    (found,) = compare_runs(run({"a": "u", "b": "s"}), run({"a": "s", "b": "s"}))
    assert found.to_json()["difference"] == -0.5
