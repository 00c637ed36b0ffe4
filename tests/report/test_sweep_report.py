"""A sweep for people: curves by hand, what is said of the best cell, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report import sweep

AXES = {"regen.alpha": ["0.3", "0.5"], "regen.tokens": ["4", "8"]}
RECORD: dict[str, Any] = {
    "run": "sweep_x", "command": "harness sweep", "axes": AXES, "mode": "product", "profile": "shapes", "limit": None,
    "best": [],
}  # fmt: skip
BEST: dict[str, Any] = {
    "bench": "ten", "policy": "star", "of": 4, "k": 1, "n": 10, "interval": [0.01, 0.4], "joint": [0.0, 0.5],
    "optimism": 0.034, "chosen": 0.61, "tied": [{}, {}], "best": {"defense": "uce", "variant": "resafe"},
}  # fmt: skip


def _cell(i: int, alpha: Any, tokens: Any, k: int, n: int = 10, bench: str = "ten") -> dict[str, Any]:
    return {
        "cell": i, "backbone": "shapes", "seed": None, "defense": "uce", "variant": f"resafe:{i}", "bench": bench,
        "metric": "asr", "main": True, "regen.alpha": alpha, "regen.tokens": tokens, "k": k, "n": n,
        "value": k / n, "low": 0.0, "high": 1.0, "errors": 0, "excluded": 0,
    }  # fmt: skip


CELLS = [_cell(0, 0.3, 4, 1), _cell(1, 0.3, 8, 2), _cell(2, 0.5, 4, 3), _cell(3, 0.5, 8, 5)]


def test_a_curve_pools_all_cells_with_a_value() -> None:
    alpha, tokens = sweep.curves(RECORD, CELLS)
    assert [(p.value, p.k, p.n, p.cells) for p in alpha.points] == [(0.3, 3, 20, 2), (0.5, 8, 20, 2)]
    assert [(p.value, p.k, p.n, p.cells) for p in tokens.points] == [(4, 4, 20, 2), (8, 7, 20, 2)]


def test_one_at_a_time_a_curve_has_the_cells_of_its_axis_alone() -> None:
    cells = [_cell(0, 0.7, 8, 1), _cell(1, 0.3, 8, 2), _cell(2, 0.5, 8, 3), _cell(3, 0.7, 4, 4)]
    alpha, tokens = sweep.curves(RECORD | {"mode": "one-at-a-time"}, cells)
    assert [(p.value, p.k) for p in alpha.points] == [(0.3, 2), (0.5, 3), (0.7, 1)]
    assert [(p.value, p.k) for p in tokens.points] == [(4, 4), (8, 1)]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([4, 8]), st.integers(0, 10)), min_size=1))
def test_every_cell_is_on_a_curve_once(drawn: list[tuple[float, int, int]]) -> None:
    cells = [_cell(i, alpha, tokens, k) for i, (alpha, tokens, k) in enumerate(drawn)]
    for curve in sweep.curves(RECORD, cells):
        assert sum(p.cells for p in curve.points) == len(cells)
        assert sum(p.k for p in curve.points) == sum(k for *_, k in drawn)
        assert [p.value for p in curve.points] == sorted({c[curve.axis] for c in cells})


def test_the_best_is_said_to_have_been_selected() -> None:
    text = "\n".join(sweep.best_lines(BEST))
    assert "best on ten: uce/resafe, 1/10 10.0% [1.0, 40.0], lowest of 4 cells by star" in text
    assert "too low (by about 3.4 points)" in text
    assert "[0.0, 50.0] holds for all cells at once" in text
    assert "the lowest in 61% of resamples" in text
    assert "2 of the other 3 cells are not told apart" in text
    assert "cannot say" in "\n".join(sweep.best_lines(BEST | {"k": 0}))


def test_files_are_written_and_those_of_an_earlier_sweep_removed(tmp_path: Path) -> None:
    (tmp_path / "regen.lam.svg").write_text("<svg/>")
    words = [_cell(0, "a", 4, 1), _cell(1, "b", 8, 2)]
    sweep.write(tmp_path, "report.md", RECORD | {"best": [BEST]}, pa.Table.from_pylist(words))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["regen.tokens.svg", "report.md"]  # alpha is no number here
    report = (tmp_path / "report.md").read_text()
    assert "| regen.alpha | b | ten | uce | 1 | 2/10 | 20.0% |" in report
    assert "best on ten" in report
    assert b"<svg" in (tmp_path / "regen.tokens.svg").read_bytes()


@pytest.mark.parametrize("count", [4, 60])
def test_a_long_table_shows_the_lowest_on_a_terminal(count: int) -> None:
    cells = [_cell(i, i / 100, 4, (i * 7) % 11, 11) for i in range(count)]
    text = sweep.text(RECORD, pa.Table.from_pylist(cells))
    assert ("the 40 lowest of 60 cells" in text) == (count == 60)
    assert "they say nothing of Stable Diffusion 1.4" in text
