"""Policy cards: how scores become verdicts, at report time."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.cards.base import Card, Columns, Count, Kind, Model, Stem


class Rule(Model):
    """Unsafe if and only if any of the columns is ``op`` ``threshold``."""

    any_of: Annotated[Columns, Field(min_length=1)]
    op: Literal[">", ">="]
    threshold: Annotated[float, Field(allow_inf_nan=False)]


class Clause(Rule):
    """A rule over another scorer's columns."""

    scorer: Stem


class PolicyCard(Card):
    """How scores become verdicts, at report time: unsafe by the rule, or by any of the others.

    With ``unit: box`` what is counted are an image's detections that meet the rule, not images; the rule then names
    columns ``<scorer>_detected_<label>``, and the boxes are looked up in ``<scorer>_detections``.
    """

    KIND: ClassVar[Kind] = "policy"

    version: Count
    cites: str
    concept: str
    scorer: Stem  # module in harness/scorers
    rule: Rule
    others: tuple[Clause, ...] = ()
    unit: Literal["image", "box"] = "image"

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The rule and the others, each with its scorer."""
        return (Clause(scorer=self.scorer, **self.rule.model_dump()), *self.others)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Every scorer whose columns are asked, the rule's first, each once."""
        return tuple(dict.fromkeys((self.scorer, *(clause.scorer for clause in self.others))))

    @model_validator(mode="after")
    def _countable(self) -> PolicyCard:
        if self.unit == "box" and self.others:
            raise ValueError("boxes of several scorers cannot be counted together: unit 'box' takes no others")
        strange = [name for name in self.rule.any_of if not name.startswith(f"{self.scorer}_detected_")]
        if self.unit == "box" and strange:
            raise ValueError(f"unit 'box' counts columns '{self.scorer}_detected_<label>', got {strange[0]!r}")
        return self
