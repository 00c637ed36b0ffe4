"""One reading of ``scorer@reference``, by its inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cards.scorer_ref import ScorerRef

STEMS = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
REFERENCES = st.none() | st.sampled_from(["same/base", "none/base", "", "a@b"])


@given(STEMS, REFERENCES)
def test_what_is_written_is_read_again(stem: str, reference: str | None) -> None:
    scorer = ScorerRef(stem, reference)
    assert ScorerRef.parse(str(scorer)) == scorer
    assert ("@" in str(scorer)) == (reference is not None)


@given(STEMS, STEMS, REFERENCES)
def test_a_column_keeps_the_reference(stem: str, column: str, reference: str | None) -> None:
    assert ScorerRef.parse(ScorerRef(stem, reference).column(column)) == (column, reference)


@pytest.mark.parametrize(
    ("text", "stem", "reference"),
    [("nudenet", "nudenet", None), ("lpips@same/base", "lpips", "same/base"), ("lpips@", "lpips", "")],
)
def test_examples(text: str, stem: str, reference: str | None) -> None:
    assert ScorerRef.parse(text) == (stem, reference)
