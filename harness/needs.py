"""What a run reads that may not be on this machine: benchmarks, weights of models, scorers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import cards, fingerprint, overrides, weights
from harness.plan import Chosen, Request
from harness.specs import Specs
from harness.weights import Weights


def things(request: Request, chosen: Chosen, roots: Sequence[Path]) -> list[cards.Card | Weights]:
    """Benchmarks, and weights of the models that draw, describe, compare and edit, and of published defenses.

    Raises:
        UserError: a regenerator needs a model that neither it nor the profile names; a malformed hub id.
    """
    specs = Specs(chosen.profile, chosen.backbone, roots, fingerprint.FileHashes())
    found: list[cards.Card | Weights] = [chosen.backbone, *chosen.benches]
    edition = chosen.profile.edition
    for defense in chosen.defenses:
        for concept in dict.fromkeys(request.concept or bench.concept for bench in chosen.benches):
            if defense.declares(edition, concept):
                found += weights.of_defense(defense, defense.resolve(edition, concept))
    for regen in chosen.regens:
        if regen.caption is not None:
            found.append(specs.captioner(regen))
        if regen.optimise is not None:
            specs.clip()
            found += weights.of_clip(chosen.profile)
        if regen.draw is not None and regen.draw.backbone is not None:
            found.append(overrides.backbone(regen.draw.backbone, roots))
        if regen.edit is not None:
            found += weights.of_editor(regen.card.name, regen.edit, regen.card.root)
    return found


def scorers(request: Request, chosen: Chosen) -> list[str]:
    """Every scorer that it may use."""
    concepts = [b.concept for b in chosen.benches] or [request.concept or next(iter(chosen.profile.concepts))]
    wanted = [s for concept in concepts for s in chosen.profile.measures(concept).scorers]
    return list(dict.fromkeys((*wanted, *request.extra_scorers)))
