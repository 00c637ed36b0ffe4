"""Faults of values in words of ours: each kind that a card can meet, against real errors of pydantic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from harness.cards.faults import value_fault


class _Checked(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        raise ValueError(f"{name} is nobody")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Annotated[int, Field(gt=0)], 0, "should be greater than 0"),
        (Annotated[float, Field(ge=1.5)], 1, "should be 1.5 or more"),
        (Annotated[int, Field(lt=3)], 3, "should be less than 3"),
        (Annotated[int, Field(le=3)], 4, "should be 3 or less"),
        (Annotated[float, Field(allow_inf_nan=False)], float("nan"), "should be a finite number"),
        (int, "many", "should be a whole number"),
        (int, 2.5, "should be a whole number"),
        (float, "much", "should be a number"),
        (bool, "perhaps", "should be true or false"),
        (str, 3, "should be text"),
        (Annotated[str, Field(pattern="^a+$")], "b", "should match ^a+$"),
        (tuple[str, ...], 3, "should be a list"),
        (dict[str, int], 3, "should be a mapping"),
        (Annotated[tuple[int, ...], Field(min_length=2)], [1], "should have 2 or more entries"),
        (_Checked, {}, "is required"),
        (_Checked, {"name": "Ann"}, "Ann is nobody"),
        (complex, [], "is not valid (complex type)"),  # a kind without a text of ours
    ],
)
def test_each_kind_has_its_words(kind: Any, value: Any, text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(value)
    assert value_fault(refused.value.errors()[0]) == text


def test_the_choices_of_a_literal_are_named() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Literal["cosine", "l2"]).validate_python("l1")
    text = value_fault(refused.value.errors()[0])
    assert text.startswith("should be ")
    assert "'cosine'" in text
    assert "'l2'" in text
