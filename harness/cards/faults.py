"""What is wrong with a value, in words of ours: pydantic's texts change between releases, its kinds do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By pydantic's kind of error; the braces take the limits that it reports beside the kind.
_TEXTS = {
    "missing": "is required",
    "greater_than": "should be greater than {gt}",
    "greater_than_equal": "should be {ge} or more",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be {le} or less",
    "multiple_of": "should be a multiple of {multiple_of}",
    "finite_number": "should be a finite number",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text",
    "string_too_short": "should have {min_length} or more characters",
    "string_too_long": "should have {max_length} or fewer characters",
    "string_pattern_mismatch": "should match {pattern}",
    "literal_error": "should be {expected}",
    "enum": "should be {expected}",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "too_short": "should have {min_length} or more entries",
    "too_long": "should have {max_length} or fewer entries",
}


def value_fault(details: Mapping[str, Any]) -> str:
    """What is wrong with one value.

    Args:
        details: one of ``ValidationError.errors()``.

    Returns:
        ``"should be greater than 0"``; of a check of ours, the text that it raised.
    """
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    return _TEXTS[kind].format_map(limits) if kind in _TEXTS else f"is not valid ({kind.replace('_', ' ')})"
