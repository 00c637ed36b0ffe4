"""Cells and their file."""

from __future__ import annotations

from pathlib import Path

import pytest
from scored import policy, row, table, went_in

from harness.errors import UserError
from harness.metrics import cells
from harness.metrics.measure import measure


def test_cells_survive_their_file(tmp_path: Path) -> None:
    rows = [row(0, "safe"), row(1, "excluded"), row(0, "unsafe", "uce"), row(1, "excluded", "uce")]
    known = {("none", "base", "b"): went_in(2, 95, fingerprints=("generate:ab",)), ("uce", "base", "b"): went_in(2, 95)}
    found = measure(table(rows), {"nudity": [policy()]}, known)
    cells.write(tmp_path / "cells.json", found)
    assert cells.read(tmp_path / "cells.json") == found


def test_a_cell_has_the_keys_that_scripts_rely_on() -> None:
    keys = {"profile", "backbone", "defense", "variant", "bench", "concept", "metric", "scorer", "policy"}
    counts = {"k", "n", "errors", "excluded", "low", "high", "value", "reference", "fingerprints", "subset"}
    found = measure(table([row(0, "safe")]), {"nudity": [policy()]})
    assert all(keys | counts <= cell.to_json().keys() for cell in found)


def test_cells_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the file is there says that the run is complete; a torn one would stop every table of the folder."""
    path = tmp_path / "cells.json"
    found = measure(table([row(0, "safe")]), {"nudity": [policy()]})
    cells.write(path, found)

    def full(_: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        cells.write(path, found * 50)
    assert cells.read(path) == found


def test_keys_of_a_newer_harness_are_left_out() -> None:
    (cell, *_) = measure(table([row(0, "safe")]), {"nudity": [policy()]})
    data = cell.to_json()
    data["compared"]["newer"] = data["newer"] = 1
    assert cells.Cell.from_json(data) == cell


@pytest.mark.parametrize("content", ["", "{}", "[{}]", "[1]", '{"k": 1}', "null"])
def test_a_damaged_file_of_cells_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cells.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"cells\.json: not the cells of a run"):
        cells.read(path)
