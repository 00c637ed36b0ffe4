"""Defense cards: a change to a backbone, with its published hyperparameters and its concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

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
    _changes: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def changes(self) -> Mapping[str, Any]:
        """Parameters that were asked for by name (``esd:steps=200``), over whatever the card says."""
        return self._changes

    def changed(self, name: str, changes: Mapping[str, Any]) -> DefenseCard:
        """The card under another name, with other values of parameters for every concept."""
        copy = self.model_copy(update={"name": name})
        copy._changes = {**self._changes, **changes}
        return copy

    def weights(self, params: Mapping[str, Any] | None = None) -> tuple[WeightsRef, ...]:
        """The hub's files that the defense is read from instead of being built.

        Args:
            params: resolved parameters, for one concept; by default the card's, for all concepts.

        Raises:
            UserError: a hub id without its commit.
        """
        chosen = {"params": {**self.params, **self._changes}, "concepts": self.concepts or {}}
        chosen = chosen if params is None else dict(params)
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

    def concept_names(self, profile: str) -> list[str]:
        """The concepts that the card names in a profile's edition."""
        return list(dict.fromkeys(concept for layer in self._layers(profile) for concept in layer.concepts))

    def declares(self, profile: str, concept: str) -> bool:
        """Whether the method can defend against ``concept`` in a profile's edition; one without concepts always can."""
        return self.concepts is None or any(concept in layer.concepts for layer in self._layers(profile))

    def _layers(self, profile: str) -> list[Overlay]:
        """What an edition's parameters are merged from, the later over the earlier."""
        own = Overlay(params=self.params, concepts=self.concepts or {})
        return [own, self.shapes] if profile == "shapes" and self.shapes is not None else [own]

    def resolve(self, profile: str, concept: str) -> dict[str, Any]:
        """The parameters for one concept: common ones, then the concept's, then the overlay's, in the same order.

        Args:
            profile: the profile's edition (``paper`` or ``shapes``).
            concept: the concept to defend against.

        Raises:
            UserError: when the card has nothing for ``concept``.
        """
        layers = self._layers(profile)
        if not self.declares(profile, concept):
            known = self.concept_names(profile)
            raise UserError(
                f"defense {self.name!r} is not declared for concept {concept!r} "
                f"(it has: {', '.join(known) or 'none'}){nearest(concept, known)}; name one with "
                f"--concept, or see {show(self.path)}"
            )
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= {**layer.params, **layer.concepts.get(concept, {})}
        return merged | self._changes


@dataclass(frozen=True)
class DefenseStack:
    """What is chosen as one defense: a card, or several on top of each other (``rece+saferedir``), first to last."""

    layers: tuple[DefenseCard, ...]

    @property
    def name(self) -> str:
        """As typed, and as tables show it."""
        return "+".join(layer.name for layer in self.layers)

    @property
    def has_concepts(self) -> bool:
        """Whether it is another one for another concept; `none` is not."""
        return any(layer.concepts is not None for layer in self.layers)

    def declares(self, edition: str, concept: str) -> bool:
        """Whether every layer can defend against ``concept`` in a profile's edition."""
        return all(layer.declares(edition, concept) for layer in self.layers)

    def resolve(self, edition: str, concept: str) -> tuple[dict[str, Any], ...]:
        """Each layer's parameters for one concept.

        Raises:
            UserError: a layer's card has nothing for ``concept``.
        """
        return tuple(layer.resolve(edition, concept) for layer in self.layers)

    def weights(self, edition: str, concept: str) -> tuple[WeightsRef, ...]:
        """The hub's files that the layers are read from, for one concept."""
        return tuple(ref for card in self.layers for ref in card.weights(card.resolve(edition, concept)))
