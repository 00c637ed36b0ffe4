"""A kind of stage is one module that says of itself what the rest of the pipeline wants to know."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from harness.pipeline import stage_kinds, stages

ORDER = ["build", "imported", "generate", "caption", "embed", "optimise", "draw", "edit", "score"]


def test_rows_meet_the_stages_in_the_declared_order() -> None:
    assert stage_kinds.names() == ORDER
    assert [k for k in ORDER if stage_kinds.declared(k).reads_images] == ["caption", "embed", "edit", "score"]


@pytest.mark.parametrize("kind", ORDER)
def test_what_is_read_from_the_source_is_what_the_module_says(kind: str) -> None:
    module = importlib.import_module(f"harness.pipeline.stages.{kind}")
    said = (module.PLACE, *(getattr(module, n, d) for n, d in (("READS_IMAGES", False), ("GPU", False))))
    assert stage_kinds.declared(kind) == (*said, getattr(module, "LIBRARIES", ()), False)


def test_a_new_kind_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blur.py").write_text("PLACE = 65\nREADS_IMAGES = True\n")
    (tmp_path / "helper.py").write_text("X = 1\n")
    monkeypatch.setattr(stages, "__path__", [str(tmp_path)])
    stage_kinds._constants.cache_clear()
    stage_kinds.declared.cache_clear()
    try:
        assert stage_kinds.names() == ["blur"]
        assert stage_kinds.declared("blur") == (65, True, False, (), False)
        with pytest.raises(ValueError, match="no kind of stage 'helper'"):
            stage_kinds.declared("helper")
    finally:
        stage_kinds._constants.cache_clear()
        stage_kinds.declared.cache_clear()
