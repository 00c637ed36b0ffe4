"""What every kind of card is built on, and the folders that cards are looked up in.

A card is a YAML file; its file stem is its name. It is read once, on the driver, into a frozen model. An unknown or
repeated key, a bad value and a name used twice are refused with file, line and nearest match.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.cards import plugins
from harness.cards.places import PACKAGE
from harness.cards.weights_ref import WeightsRef
from harness.errors import UserError

Kind = Literal["backbone", "defense", "regenerator", "judge", "policy", "profile", "sweep", "dataset", "report"]

FOLDERS: dict[Kind, str] = {
    "backbone": "pipelines/backbones",
    "defense": "pipelines/defenses",
    "regenerator": "pipelines/regenerators",
    "judge": "pipelines/judges",
    "policy": "pipelines/policies",
    "profile": "pipelines/profiles",
    "sweep": "pipelines/sweeps",
    "dataset": "datasets",
    "report": "reports",
}


Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Stem = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]  # of a module
Scored = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(@(same|none)/base)?$")]  # scorer or column, and reference
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Columns = tuple[str, ...]


class Model(BaseModel):
    """Base class of cards and their sections: immutable, and undeclared keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Card(Model):
    """One file. ``name``, ``path`` and ``root`` come from where it lies; the rest is its content."""

    KIND: ClassVar[Kind]

    name: str
    path: Path = Field(exclude=True, repr=False)  # excluded: a card hashes alike wherever it lies
    root: Path = Field(exclude=True, repr=False)
    summary: str  # one line, for `harness list`

    def weights(self) -> tuple[WeightsRef, ...]:
        """The published weights that the card itself names; most kinds name none."""
        return ()


def card_roots(cards: Path | None = None) -> list[Path]:
    """Folders that hold cards, in order: ``--cards DIR``, our own, then those that installed packages bring.

    Raises:
        UserError: when ``cards`` is no folder of cards.
    """
    installed = [own_root(), *plugins.card_folders()]
    if cards is None:
        return installed
    if not cards.is_dir():
        raise UserError(f"--cards: no folder {str(cards)!r}")
    if not any((cards / folder).is_dir() for folder in FOLDERS.values()):
        raise UserError(f"--cards: {str(cards)!r} holds none of {', '.join(FOLDERS.values())}")
    return list(dict.fromkeys([cards.resolve(), *installed]))


def own_root() -> Path:
    """The folder of our own cards: the checkout, or else the packaged copy.

    The packaged copy of an editable install is a stale snapshot, so it stands only where there is no checkout.
    """
    checkout = PACKAGE.parent
    inside = (checkout / "pyproject.toml").is_file() and (checkout / "pipelines").is_dir()
    return checkout if inside else PACKAGE / "_cards"
