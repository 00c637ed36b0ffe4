"""What a run reads that may not be on this machine: benchmarks, weights of models, scorers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import scorers
from harness.cards.backbone import BackboneCard
from harness.cards.base import Card
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.load import card_names, load_card
from harness.cards.places import is_path
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.cards.scorer_ref import ScorerRef
from harness.cards.weights_ref import WeightsRef
from harness.cards.yaml_file import show
from harness.data.benchmarks import file_of
from harness.data.fetch import how_to_get
from harness.errors import UserError, nearest
from harness.models import own_backbone, weights
from harness.pipeline.request import Chosen, Request
from harness.pipeline.stage_specs import Specs
from harness.store import fingerprint


def prerequisites(request: Request, chosen: Chosen, roots: Sequence[Path]) -> list[BenchmarkCard | WeightsRef]:
    """Benchmarks, and weights of the models that draw, describe, compare and edit, and of published defenses.

    Raises:
        UserError: a regenerator needs a model that neither it nor the profile names; a malformed hub id.
    """
    specs = Specs(chosen.profile, chosen.backbone, roots, fingerprint.FileHashes())
    needed: list[BenchmarkCard | WeightsRef] = [*chosen.backbone.weights(), *chosen.benches]
    edition = chosen.profile.edition
    for defense in chosen.defenses:
        for concept in dict.fromkeys(request.concept or bench.concept for bench in chosen.benches):
            if defense.declares(edition, concept):
                needed += defense.weights(edition, concept)
    for regen in chosen.regens:
        if regen.caption is not None:
            needed += specs.captioner(regen).weights()
        if regen.optimise is not None:
            specs.clip()
            needed += chosen.profile.weights()
        if regen.draw is not None and regen.draw.backbone is not None:
            needed += own_backbone.backbone(regen.draw.backbone, roots).weights()
        if regen.edit is not None:
            needed += regen.edit.weights(regen.card.name, regen.card.root)
    return needed


def profile_weights(profile: ProfileCard, roots: Sequence[Path]) -> list[WeightsRef]:
    """All that a profile draws, describes and compares with.

    Raises:
        UserError: it names a card that is not there.
    """
    captioner = load_card(JudgeCard, profile.captioner, roots).weights() if profile.captioner is not None else ()
    return [*own_backbone.backbone(profile.backbone, roots).weights(), *captioner, *profile.weights()]


def find_weights(name: str, roots: Sequence[Path]) -> list[WeightsRef]:
    """All weights that go by a name: of a backbone, judge, defense, regenerator, profile or scorer.

    Raises:
        UserError: no such name (with the nearest), or nothing to fetch under it.
    """
    if is_path(name):
        return list(own_backbone.backbone(name, roots).weights())
    name = name.partition(":")[0]  # the weights are the same however they are sampled
    kinds: tuple[type[Card], ...] = (JudgeCard, DefenseCard, RegeneratorCard)
    all_kinds: tuple[type[Card], ...] = (BackboneCard, *kinds, ProfileCard)
    names = {kind: card_names(kind, roots) for kind in all_kinds}
    stems = scorers.names()
    known = sorted({*stems, *(n for group in names.values() for n in group)})
    if name not in known:
        raise UserError(f"no weights {name!r}{nearest(name, known)} (there are those of: {', '.join(known)})")
    references = [*own_backbone.backbone(name, roots).weights()] if name in names[BackboneCard] else []
    references += [ref for kind in kinds if name in names[kind] for ref in load_card(kind, name, roots).weights()]
    if name in names[ProfileCard]:
        references += profile_weights(load_card(ProfileCard, name, roots), roots)
    if name in stems:
        references += scorers.hub_weights(name)
    if not references:
        raise UserError(f"{name}: has no weights of its own to fetch; see `harness describe`")
    return weights.distinct(references)


def scorer_names(request: Request, chosen: Chosen) -> list[str]:
    """Every scorer that it may use."""
    concepts = [b.concept for b in chosen.benches] or [request.concept or next(iter(chosen.profile.concepts))]
    wanted = [s for concept in concepts for s in chosen.profile.measures(concept).scorers]
    return list(dict.fromkeys((*wanted, *request.extra_scorers)))


def missing(
    needed: Iterable[BenchmarkCard | WeightsRef], profile: ProfileCard, data: Path, stems: Iterable[str] = ()
) -> list[str]:
    """What a run lacks on this machine: one line for each thing, with how to get it.

    Looks at files only; asks no network, loads no model.

    Args:
        needed: benchmarks and weights.
        profile: says which edition of the benchmarks, and how its scorers are set.
        data: folder where ``fetch_bench`` puts files.
        stems: of scorers, with or without a reference.

    Raises:
        UserError: a benchmark has no edition for the profile; an unknown scorer.
    """
    lines: list[str] = []
    references: list[WeightsRef] = []
    for one in needed:
        if isinstance(one, BenchmarkCard):
            lines += _missing_bench(one, profile, data)
        else:
            references.append(one)
    lines += [line for ref in weights.distinct(references) for line in weights.missing(ref)]
    for stem in dict.fromkeys(ScorerRef.parse(name).stem for name in stems):
        lines += missing_of_scorer(stem, profile.settings.get(stem, {}))
    return list(dict.fromkeys(lines))


def missing_of_scorer(stem: str, params: Mapping[str, Any]) -> list[str]:
    """What a scorer lacks on this machine: a line for each thing, with how to get it. Asks no network, loads no model.

    Raises:
        UserError: no such scorer, or a parameter it does not have.
    """
    lines = [line for ref in scorers.hub_weights(stem, params) for line in weights.missing(ref)]
    try:
        scorers.weights(stem, params)
    except UserError as error:
        lines.insert(0, str(error))
    return lines


def _missing_bench(card: BenchmarkCard, profile: ProfileCard, data: Path) -> list[str]:
    edition = card.edition(profile.edition)
    path = file_of(card, edition, data)
    if path.exists():
        return []
    if edition.source.startswith("package:"):
        return [f"benchmark {card.name}: {show(path)} is missing from the package; install it again"]
    return [how_to_get(card, edition)]


def require(
    needed: Iterable[BenchmarkCard | WeightsRef], profile: ProfileCard, data: Path, stems: Iterable[str] = ()
) -> None:
    """Refuses a run that lacks something, naming everything at once; arguments as ``missing``.

    Raises:
        UserError: one message, a line for each missing thing.
    """
    lines = missing(needed, profile, data, stems)
    if not lines:
        return
    hint = "" if profile.edition == "shapes" else "; `--profile shapes` needs none of it"
    listed = "".join(f"\n  - {line}" for line in lines)
    raise UserError(
        f"profile {profile.name} lacks {len(lines)} thing{'s'[: len(lines) > 1]} on this machine{hint}:{listed}"
    )
