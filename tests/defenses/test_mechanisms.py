from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import defenses
from harness.errors import UserError


def test_every_module_with_load_is_a_mechanism_and_no_other() -> None:
    assert {"none", "negative_prompt", "sld", "uce", "rece"} <= set(defenses.names())
    assert not {"base", "closed_form", "artefact"} & set(defenses.names())


def test_an_unknown_mechanism_is_answered_with_the_nearest(pipe: Any) -> None:
    for use in (
        lambda: defenses.load("recee", pipe, {}),
        lambda: defenses.build("recee", pipe, {}),
        lambda: defenses.modules("recee"),
    ):
        with pytest.raises(UserError, match=r"unknown defense mechanism 'recee'; did you mean 'rece'\?"):
            use()


def test_building_where_there_is_nothing_to_build_is_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match="'sld' has nothing to build"):
        defenses.build("sld", pipe, {})


def test_sources_of_a_mechanism_include_those_it_builds_on() -> None:
    assert defenses.modules("rece") == [
        f"harness.defenses.{m}" for m in ("artefact", "base", "closed_form", "rece", "uce")
    ]
    assert "harness.defenses.uce" not in defenses.modules("sld")


def test_local_files_that_parameters_name_are_listed_but_not_hub_ids_or_texts() -> None:
    assert defenses.files({"weights": "/a/b.pt", "preserve": "/c.txt"}) == [Path("/a/b.pt"), Path("/c.txt")]
    assert defenses.files({"weights": "hub:o/r@0/x.pt", "preserve": ["", "art"]}) == []
    assert defenses.files({"weights": None}) == []


def test_looking_at_mechanisms_imports_no_model_library() -> None:
    code = (
        "import sys; from harness import defenses; defenses.names(); defenses.modules('rece'); defenses.files({}); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
