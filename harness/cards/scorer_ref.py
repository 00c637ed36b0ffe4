"""How cards, the command line and columns name a scorer and what it compares with: ``lpips@same/base``."""

from __future__ import annotations

from typing import NamedTuple


class ScorerRef(NamedTuple):
    """A scorer, or one of its columns, and for a pair scorer the images that it compares with."""

    stem: str  # "lpips"; of a column "lpips_alex"
    reference: str | None = None  # "same/base": the image before regeneration; "none/base": the undefended one

    @classmethod
    def parse(cls, text: str) -> ScorerRef:
        """The parts of ``lpips@same/base``; whether there is such a scorer and reference is not asked."""
        stem, at, reference = text.partition("@")
        return cls(stem, reference if at else None)

    def __str__(self) -> str:
        """The name again: ``parse`` undoes it."""
        return self.stem if self.reference is None else f"{self.stem}@{self.reference}"

    def column(self, name: str) -> str:
        """One of the scorer's own columns as rows of a run have it: with the reference in its name."""
        return str(ScorerRef(name, self.reference))
