"""What a condition cost: device-seconds by stage, of all images or of flagged ones only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one variant of one condition took beyond the images that it began from."""

    defense: str
    variant: str
    bench: str
    device: str  # "cpu", "cuda", or both with a plus
    rows: int  # of the shards whose time is known
    seconds: dict[str, float]  # by stage
    flagged: int | None = None  # of a regeneration, where there is a policy: images that the main one flags
    total: int | None = None

    @property
    def per_image(self) -> float:
        """Device-seconds per image."""
        return sum(self.seconds.values()) / self.rows

    @property
    def per_image_if_flagged(self) -> float | None:
        """Device-seconds per image had only the flagged ones been made anew."""
        return None if self.flagged is None or not self.total else self.per_image * self.flagged / self.total

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        """The cost that ``to_json`` gave."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """The cost as plain data, with its two rates; ``from_json`` reads it back."""
        return asdict(self) | {"per_image": self.per_image, "per_image_if_flagged": self.per_image_if_flagged}
