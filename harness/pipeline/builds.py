"""Building defenses by themselves, before anything is drawn with them; and how far builds are.

Artefacts lie in the store by their fingerprints (``harness.store.artefacts``), so that an evaluation finds what was
built here, and the other way round. Several processes may build side by side: each artefact has one builder at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import defenses
from harness.cards import overrides
from harness.cards.backbone import BackboneCard
from harness.cards.defense import DefenseCard, DefenseStack
from harness.cards.load import card_names, load_card
from harness.cards.profile import ProfileCard
from harness.defenses import artefact_kind, stacked
from harness.errors import UserError
from harness.models import own_backbone
from harness.pipeline import prerequisites
from harness.pipeline.plan import Plan
from harness.pipeline.request import Places, Request
from harness.pipeline.stage_specs import Specs
from harness.store.artefacts import ArtefactFolder
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store

if TYPE_CHECKING:
    from harness.pipeline.executor import Resources
    from harness.pipeline.outcome import Outcome
    from harness.pipeline.progress import Progress


SILENCE_S = {"cuda": 3600.0, "cpu": 24 * 3600.0}  # without a step, after which a build is a hang


class Built(NamedTuple):
    """An artefact in the store."""

    defense: str
    concept: str
    kind: str  # one of `harness.defenses.KINDS`
    fingerprint: str
    path: Path  # of its tensors; the provenance lies beside
    seconds: float | None  # that its build took; None: not known
    was_there: bool  # before the command


class BuildReport(NamedTuple):
    """How a command that builds went."""

    outcome: Outcome | None  # None: everything was in the store
    built: tuple[Built, ...]  # what is there now
    run: Path | None  # folder of logs; None where all went well


def prepare(request: Request, places: Places) -> Plan:
    """The builds of ``request``: its defenses for its concept, or for every concept that their cards declare.

    Writes nothing, except that a store that is there keeps the hashes of files.

    Raises:
        UserError: a wrong name, parameter or store; nothing to build; or weights that are not on this machine.
    """
    Store.check(places.store)
    roots = places.roots
    profile = load_card(ProfileCard, request.profile, roots)
    backbone = own_backbone.backbone(request.backbone or profile.backbone, roots)
    specs = Specs(profile, backbone, roots, FileHashes(_hashes(places.store)))
    wanted = [(d, c) for d in _defenses(request, specs) for c in _concepts(d, request.concept, profile.edition)]
    needed = [*backbone.weights(), *(ref for d, c in wanted for ref in d.weights(profile.edition, c))]
    prerequisites.require(needed, profile, places.data)
    builds = [build for defense, concept in wanted for build in specs.builds(defense, concept)]
    distinct = {build.fingerprint: build for build in builds}
    return Plan(
        request=request, profile=profile, backbone=backbone, conditions=(), policies={},
        asked_builds=tuple(distinct.values()),
    )  # fmt: skip


def require_fitting(made: Plan, store: Store) -> None:
    """Refuse published weights of defenses that do not fit the backbone, before any model is loaded.

    Raises:
        UserError: what does not fit, and what it looks like.
    """
    for spec in (made.builds[i] for i in made.missing_builds(store)):
        layer = spec.worker["layer"]
        if layer["params"].get("weights") is not None:
            from harness.models.outline import outline

            known = outline(BackboneCard.model_validate(spec.worker["backbone"]))
            if known is not None:
                defenses.require_fitting(layer["mechanism"], layer["params"], known)


def build_estimates(made: Plan, store: Path) -> list[dict[str, Any]]:
    """Each build of a plan as plain data: what it takes, and whether it is in the store already."""
    there = Store(store)
    return [
        b.build._asdict()
        | {
            "hours": round(b.build.seconds / 3600, 3),
            "fingerprint": b.fingerprint,
            "built": ArtefactFolder.of(there, b.fingerprint).is_built,
        }
        for b in made.builds
        if b.build is not None
    ]


def build(request: Request, places: Places, resources: Resources, progress: Progress) -> BuildReport:
    """Build what is not in the store yet.

    Args:
        request: defenses, concept, profile, backbone.
        places: its folders; logs lie below ``out`` while it runs, and stay only where something went wrong.
        resources: of the machine.
        progress: called with the progress of the builds.

    Raises:
        UserError: see ``prepare``.
    """
    made = prepare(request, places)
    store = Store.open(places.store)
    before = {b.fingerprint for b in made.builds if ArtefactFolder.of(store, b.fingerprint).is_built}
    require_fitting(made, store)
    if not made.first_builds(store):
        return BuildReport(None, _built(made, store, before), None)
    from harness.pipeline import executor
    from harness.pipeline.stages.base import WorkerContext

    device = "cuda" if resources.num_gpus else "cpu"
    places.out.mkdir(parents=True, exist_ok=True, mode=0o700)
    run = Path(tempfile.mkdtemp(prefix="build_", dir=places.out))  # of this process alone: another may build beside
    context = WorkerContext(store=store, run=run, device=device, silence_s=SILENCE_S[device])
    writes = [f"{b.stage}/{b.fingerprint} of {run.name}" for b in made.builds]  # shared with others that build the same
    with store.lock(writes):
        outcome = executor.execute(made, context, resources, progress, lambda failed: False)
    if outcome.complete:
        shutil.rmtree(run, ignore_errors=True)
    return BuildReport(outcome, _built(made, store, before), None if outcome.complete else run)


def _built(made: Plan, store: Store, before: set[str]) -> tuple[Built, ...]:
    """The plan's artefacts that are in the store."""
    there = []
    for spec in made.builds:
        folder = ArtefactFolder.of(store, spec.fingerprint)
        if folder.is_built and spec.build is not None:
            cost = folder.cost()
            there.append(
                Built(
                    spec.build.defense, spec.build.concept, spec.build.kind, spec.fingerprint, folder.tensors,
                    cost["seconds"] if cost else None, spec.fingerprint in before,
                )
            )  # fmt: skip
    return tuple(there)


def _defenses(request: Request, specs: Specs) -> list[DefenseStack]:
    """The defenses asked for; "all" means those that have something to build for the backbone.

    Raises:
        UserError: an unknown one, or one with nothing to build.
    """
    everything = "all" in request.defenses
    names = card_names(DefenseCard, specs.roots) if everything else list(request.defenses)
    chosen = [overrides.defense(name, specs.roots) for name in names]
    if everything:
        return [d for d in chosen if _builds(d) and stacked.works(d, specs.backbone)]
    for defense in chosen:
        if not _builds(defense):
            raise UserError(f"defense {defense.name!r} has nothing to build: it acts while images are drawn")
    return list({d.name: d for d in chosen}.values())


def _builds(defense: DefenseStack) -> bool:
    return any(artefact_kind(card.mechanism) is not None for card in defense.layers)


def _concepts(defense: DefenseStack, concept: str | None, edition: str) -> Sequence[str]:
    """The concept asked for, or all that the defense declares.

    Raises:
        UserError: it declares none by name.
    """
    if concept is not None:
        return [concept]
    declared = [c for card in defense.layers for c in card.concept_names(edition)]
    chosen = [c for c in dict.fromkeys(declared) if defense.declares(edition, c)]
    if not chosen:
        raise UserError(f"defense {defense.name!r}: say with --concept what it shall remove")
    return chosen


def _hashes(store: Path) -> Path | None:
    return store / "sha256.json" if Store.is_at(store) else None
