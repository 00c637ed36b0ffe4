"""The guard's single age words, from its word list."""

from __future__ import annotations

from harness.data import guard


def age_words() -> frozenset[str]:
    """Every single word that alone is an age term, lower case, plurals included."""
    return frozenset(form for term in guard._data()["age"] for form in guard._plurals(term.replace(" ", "")))
