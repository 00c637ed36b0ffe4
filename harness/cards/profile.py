"""Profile cards: which models play which role."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.cards.base import Amount, Card, Columns, Count, Kind, Model, Revision, Scored, Stem
from harness.cards.weights_ref import WeightsRef, weights_of
from harness.cards.yaml_file import show
from harness.errors import UserError, nearest


class Measures(Model):
    """What is scored and printed for one concept."""

    scorers: tuple[Scored, ...] = ()  # beside those that always run
    policy: str | None = None  # null: nothing here is unsafe, a judge or a mean says what counts
    policies: Columns = ()  # printed beside the first


class ClipWeights(Model):
    """CLIP's weights: where they come from, and how they are held."""

    source: str  # hub id, "package:harness/...", or a path
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    licence: str
    gated: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    micro_batch: Count = 32
    memory_gb: Amount = 0


class ProfileCard(Card):
    """Which models play which role."""

    KIND: ClassVar[Kind] = "profile"

    edition: Literal["paper", "shapes"]  # of the benchmarks, and of the defenses' and regenerators' parameters
    backbone: str
    captioner: str | None = None  # a judge card: who describes images for a regenerator
    clip: ClipWeights | None = None  # whose features a regenerator compares
    regenerators: Columns = ()  # what stands beside each defense unless --regen says otherwise
    shard_rows: Count = 64
    scorers: tuple[Scored, ...] = ()  # run whatever the concept; a pair scorer with its reference: lpips@same/base
    means: tuple[Scored, ...] = ()  # raw columns printed as a mean, or as k of n where they are yes or no
    settings: dict[Stem, dict[str, Any]] = Field(default={})  # parameters of a scorer
    concepts: dict[str, Measures]

    def weights(self) -> tuple[WeightsRef, ...]:
        """The weights of the profile's CLIP; none where the profile has no CLIP."""
        if self.clip is None:
            return ()
        return (weights_of(self.clip, "clip", self.name, self.root),)

    def measures(self, concept: str) -> Measures:
        """Scorers and policies of ``concept``; the scorers include those that run for every concept.

        Raises:
            UserError: when the profile has nothing for ``concept``.
        """
        if concept not in self.concepts:
            raise UserError(
                f"profile {self.name!r} does not know concept {concept!r} "
                f"(it has: {', '.join(self.concepts)}){nearest(concept, self.concepts)}; see {show(self.path)}"
            )
        own = self.concepts[concept]
        return own.model_copy(update={"scorers": tuple(dict.fromkeys((*self.scorers, *own.scorers)))})

    def policies(self, concept: str) -> tuple[str, ...]:
        """Names of the policies printed for ``concept``, the main one first."""
        measures = self.measures(concept)
        return tuple(dict.fromkeys(((measures.policy,) if measures.policy else ()) + measures.policies))
