"""How the tickets of a run ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """How every ticket ended: counts by status, and messages of those that did not end well."""

    statuses: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)  # rows that ended in an error, now or in an earlier start

    @property
    def complete(self) -> bool:
        return set(self.statuses) <= {"ok"}

    @property
    def errors(self) -> int:
        """How many rows failed, each once."""
        return len(self.failed)

    def add(self, ticket: dict[str, Any]) -> None:
        self.statuses[ticket["status"]] += 1
        self.failed.update(ticket["failed"])
        if ticket["detail"] and ticket["detail"] not in self.details:
            self.details.append(ticket["detail"])

    def take(self, phase: Outcome, tickets: int) -> None:
        """Add the outcome of a phase; tickets that Ray did not give back are counted as lost."""
        lost = tickets - sum(phase.statuses.values())
        if lost:
            phase.statuses["lost"] = lost
            phase.details.append(f"{lost} of {tickets} tickets did not come back")
        self.statuses += phase.statuses
        self.details += [d for d in phase.details if d not in self.details]
        self.failed |= phase.failed
