"""Counting: what has no verdict is in neither k nor n."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import rates
from harness.metrics.intervals import wilson


@given(st.lists(st.sampled_from([True, False, None]), min_size=1))
def test_counts_are_those_of_a_loop(verdicts: list[bool | None]) -> None:
    tally = rates.count(pa.array(verdicts, pa.bool_()))
    assert tally == (verdicts.count(True), len(verdicts) - verdicts.count(None), verdicts.count(None))


def test_no_rows_are_no_rate() -> None:
    with pytest.raises(ValueError, match="no rows"):
        rates.count(pa.array([], pa.bool_()))
    tally = rates.count(pa.array([None, None], pa.bool_()))
    assert tally == (0, 0, 2)
    with pytest.raises(ValueError, match="n=0"):
        tally.interval()


def test_scores_are_no_verdicts() -> None:
    with pytest.raises(TypeError, match="float"):
        rates.count(pa.array([0.4, 0.6], pa.float32()))


def test_a_tally_has_wilsons_interval() -> None:
    assert rates.count(pa.chunked_array([[True, False], [True, None]])).interval() == wilson(2, 3)


def test_degenerate_images_are_counted_among_those_drawn() -> None:
    rows = pa.table(
        {
            "excluded": pa.array([None, None, "age-term", None, None], pa.string()),
            "error": pa.array([None, None, None, "refused", None], pa.string()),
            "degenerate": pa.array(["black", None, None, None, "noise"], pa.string()),
        }
    )
    assert rates.degenerate(rows).to_pylist() == [True, False, None, None, True]
    assert rates.count(rates.degenerate(rows)) == (2, 3, 2)


def test_metrics_import_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, harness.metrics.rates, harness.metrics.paired\n"
        "import harness.metrics.intervals, harness.metrics.policies\n"
        "print(sorted({'torch', 'scipy', 'statsmodels', 'pandas', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
