"""Defense cards: a change to a backbone, with its published hyperparameters and its concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from harness.cards.base import Card, Kind, Model, Stem
from harness.cards.weights_ref import WeightsRef, hub_files
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest


class Overlay(Model):
    """What differs in the shapes world: merged over the card's own ``params`` and ``concepts``."""

    params: dict[str, Any] = Field(default={})
    concepts: dict[str, dict[str, Any]] = Field(default={})


class DefenseCard(Card):
    """A change to a backbone: published method, its hyperparameters, its concepts."""

    KIND: ClassVar[Kind] = "defense"

    paper: str
    url: str | None = None
    licence: str | None = None
    mechanism: Stem  # module in harness/defenses
    variant: str = "as described"
    artefact: bool = False  # is there something to build before it can run
    params: dict[str, Any] = Field(default={})
    concepts: dict[str, dict[str, Any]] | None = None  # null: the same for every concept
    shapes: Overlay | None = None

    def weights(self, params: Mapping[str, Any] | None = None) -> tuple[WeightsRef, ...]:
        """The hub's files that the defense is read from instead of being built.

        Args:
            params: resolved parameters, for one concept; by default the card's, for all concepts.

        Raises:
            UserError: a hub id without its commit.
        """
        chosen = {"params": self.params, "concepts": self.concepts or {}} if params is None else params
        return tuple(
            WeightsRef(
                role="defense",
                name=self.name,
                source=repository,
                revision=commit,
                files=(file,),
                licence=self.licence or "see its page on the hub",
            )
            for repository, commit, file in hub_files(chosen)
        )

    def declares(self, profile: str, concept: str) -> bool:
        """Whether the method can defend against ``concept`` in a profile's edition; one without concepts always can."""
        return self.concepts is None or any(concept in layer.concepts for layer in self._layers(profile))

    def _layers(self, profile: str) -> list[Overlay]:
        """What an edition's parameters are merged from, the later over the earlier."""
        own = Overlay(params=self.params, concepts=self.concepts or {})
        return [own, self.shapes] if profile == "shapes" and self.shapes is not None else [own]

    def resolve(self, profile: str, concept: str) -> dict[str, Any]:
        """The parameters for one concept: common ones, then the concept's, then the shapes overlay's.

        Args:
            profile: the profile's edition (``paper`` or ``shapes``).
            concept: the concept to defend against.

        Raises:
            UserError: when the card has nothing for ``concept``.
        """
        layers = self._layers(profile)
        if not self.declares(profile, concept):
            known = [c for layer in layers for c in layer.concepts]
            raise UserError(
                f"defense {self.name!r} is not declared for concept {concept!r} "
                f"(it has: {', '.join(dict.fromkeys(known)) or 'none'}){nearest(concept, known)}; name one with "
                f"--concept, or see {show(self.path)}"
            )
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= layer.params
        for layer in layers:
            merged |= layer.concepts.get(concept, {})
        return merged
