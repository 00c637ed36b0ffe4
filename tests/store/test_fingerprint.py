from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.store import fingerprint

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, min_size=2, max_size=5))
def test_a_digest_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert fingerprint.digest(value) == fingerprint.digest(backwards)


@given(json_values, json_values)
def test_different_values_have_different_digests(a: object, b: object) -> None:
    import json

    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint.digest(a) == fingerprint.digest(b)) == same


def test_nan_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint.digest({"a": float("nan")})


def test_changed_code_changes_the_digest_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "strange_module.py"
    module.write_text("raise RuntimeError('must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = fingerprint.code(["strange_module"])
    module.write_text("raise RuntimeError('still must not')\n")
    assert fingerprint.code(["strange_module"]) != before
    assert "strange_module" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose stage imports a mechanism, which imports a loop in a subpackage, inside a function."""
    root = tmp_path / "strange"
    for name, text in {
        "__init__": "", "stage": "from strange import mechanism\n", "mechanism": "from .training.loop import train\n",
        "training/__init__": "", "training/loop": "def train():\n    from strange.training import noise\n",
        "training/noise": "LEVEL = 1\n", "elsewhere": "",
    }.items():  # fmt: skip
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_a_module_three_imports_deep_counts_and_one_that_nobody_imports_does_not(package: Path) -> None:
    before = fingerprint.code(["strange.stage"])
    (package / "elsewhere.py").write_text("LEVEL = 2\n")
    assert fingerprint.code(["strange.stage"]) == before
    (package / "training/deeper.py").write_text("LEVEL = 1\n")
    (package / "training/noise.py").write_text("from strange.training.deeper import LEVEL\n")
    deeper = fingerprint.code(["strange.stage"])
    assert deeper != before
    (package / "training/deeper.py").write_text("LEVEL = 2\n")
    assert fingerprint.code(["strange.stage"]) not in (before, deeper)


@pytest.mark.parametrize(
    "text",
    [
        "# why\nLEVEL = 1  # of noise\n", '"""The noise."""\n\nLEVEL = (\n    1\n)\n',
        "LEVEL=1;\n",
    ],
)  # fmt: skip
def test_a_mended_sentence_throws_nothing_away(package: Path, text: str) -> None:
    before = fingerprint.code(["strange.stage"])
    (package / "training/noise.py").write_text(text)
    assert fingerprint.code(["strange.stage"]) == before


def test_a_docstring_of_a_class_or_function_is_no_code_and_a_text_is() -> None:
    plain = fingerprint._statements("class A:\n    def f(self):\n        return 1\n")
    assert (
        fingerprint._statements('class A:\n    """A."""\n    def f(self):\n        "F."\n        return 1\n') == plain
    )
    assert fingerprint._statements("def f():\n    'only'\n") == "def f():\n    pass"
    assert fingerprint._statements("x = 'a'\n") != fingerprint._statements("x = 'b'\n")


def test_what_is_ignored_is_there_and_holds_no_maths() -> None:
    for name in fingerprint.IGNORED:
        assert fingerprint.source_file(name) is not None, name
        imports = [n for n in fingerprint._parsed(fingerprint._text(name)).body if isinstance(n, ast.Import)]
        assert not {a.name for n in imports for a in n.names} & {"torch", "numpy", "scipy"}, name


def test_every_import_of_a_stage_counts_unless_it_is_ignored() -> None:
    closure = set(fingerprint.closure(["harness.pipeline.stages.generate"]))
    assert {"harness.models.text_to_image", "harness.models.loading", "harness.data.guard"} <= closure
    assert not [name for name in closure if name.startswith(("harness.store", "harness.cards"))]


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no_such_module_anywhere"):
        fingerprint.code(["no_such_module_anywhere"])


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, memory = tmp_path / "w.bin", tmp_path / "memory.json"
    file.write_bytes(b"one")
    first = fingerprint.FileHashes(memory).of(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    memory.write_text(memory.read_text().replace(first, "0" * 64))
    assert fingerprint.FileHashes(memory).of(file) == "0" * 64  # remembered, not read again
    file.write_bytes(b"other")
    assert fingerprint.FileHashes(memory).of(file) == hashlib.sha256(b"other").hexdigest()


def test_a_torn_memory_is_begun_anew(tmp_path: Path) -> None:
    file, memory = tmp_path / "w.bin", tmp_path / "memory.json"
    file.write_bytes(b"one")
    for content in ('{"half', "[]", "null", ""):
        memory.write_text(content)
        assert fingerprint.FileHashes(memory).of(file) == hashlib.sha256(b"one").hexdigest()


def test_a_memory_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    assert fingerprint.FileHashes(tmp_path / "no" / "memory.json").of(file) == hashlib.sha256(b"one").hexdigest()


def test_difference_names_the_leaf_and_both_values() -> None:
    left = {"method": {"params": {"lam": 0.5, "s": 1}}, "same": 1}
    right = {"method": {"params": {"lam": 0.1, "s": 1}}, "same": 1, "new": 2}
    assert fingerprint.difference(left, right) == [("method.params.lam", 0.5, 0.1), ("new", None, 2)]
