"""Cells of a prompt file are read as they stand, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.prompt_file import guidance, pixels, seed


@pytest.mark.parametrize("cell", ["1_0", "٣", "7,5", "0x1", "7.5.", "1e400", "nan", "-1"])
def test_what_is_no_plain_number_is_no_guidance(cell: str) -> None:
    """Python's own reading takes 1_0 for 10, and digits of any script; nothing is guessed here."""
    with pytest.raises(ValueError, match="guidance"):
        guidance(cell)


@given(st.floats(0, 1e6))
def test_a_guidance_is_read_as_it_was_written(value: float) -> None:
    assert guidance(f" {value!r} ") == value


@given(st.integers(0, (1 << 64) - 1))
def test_a_seed_is_read_as_it_was_written(value: int) -> None:
    assert seed(str(value)) == seed(f"{value}.0") == value


@pytest.mark.parametrize("cell", ["1e3", "1_0", "٣", "-1", str(1 << 64), "9" * 5000, "nan", "7.5"])
def test_what_is_no_unsigned_64_bit_integer_is_no_seed(cell: str) -> None:
    with pytest.raises(ValueError, match=r"seed|digits"):
        seed(cell)


def test_an_empty_cell_is_no_zero() -> None:
    assert (seed(" "), guidance(""), pixels("")) == (None, None, None)
