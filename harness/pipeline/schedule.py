"""Which stages run together: a phase streams, and where models do not fit side by side phases follow each other.

Within a phase, every GPU stage has an actor on every GPU, with a share of it after its model's memory; what needs no
GPU shares one kind of process, since a process costs seconds to start and a model of the embedded world does not.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from harness.errors import UserError
from harness.pipeline.plan import Plan
from harness.store import artefacts

BUILD = artefacts.STAGE  # a phase of its own, each build on a GPU of its own
_HEADROOM = 0.92  # of a GPU's memory that models may take


@dataclass(frozen=True)
class ActorGroup:
    """Stages in one process, in the order in which a ticket meets them."""

    stages: tuple[str, ...]
    gpu: float = 0.0  # share of a GPU that each actor has


@dataclass(frozen=True)
class Phase:
    """Actor groups that stream: the first shards are scored while the last are drawn."""

    actor_groups: tuple[ActorGroup, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for group in self.actor_groups for name in group.stages)


def cut(plan: Plan, gpus: int, gpu_memory_gb: float | None) -> list[Phase]:
    """The phases of a run.

    Args:
        plan: what is to be done.
        gpus: how many there are; without any, each phase is one actor group.
        gpu_memory_gb: of one GPU; None where it is not known: then each model has a phase for itself.

    Raises:
        UserError: one model alone does not fit.
    """
    alone = any(b.is_long for b in plan.builds) or plan.asked_builds
    first = [Phase((ActorGroup((BUILD,), float(bool(gpus))),))] if alone else []
    names = plan.stage_names()
    last = [n for n in names if _looks_across(plan, n)]  # they need another condition's images, whole
    rest = [n for n in names if n not in last]
    groups = [g for part in (rest, last) for g in (_by_memory(plan, part, gpu_memory_gb) if gpus else [part]) if g]
    return first + [Phase(tuple(_actor_groups(plan, group, gpus))) for group in groups]


def _looks_across(plan: Plan, stage: str) -> bool:
    return any(s.stage == stage and s.reference and s.reference.keys for c in plan.conditions for s in c.stages)


def _by_memory(plan: Plan, names: list[str], room: float | None) -> list[list[str]]:
    """Consecutive stages in groups whose GPU models fit side by side; a CPU stage goes with what it follows."""
    groups: list[list[str]] = []
    taken = 0.0
    for name in names:
        needed = memory(plan, name)
        if room is not None and needed > room * _HEADROOM:
            raise UserError(
                f"stage {name!r} needs {needed:g} GB (its card's memory_gb) and a GPU here has {room:g} GB: "
                "lower its micro_batch or dtype, or give more room with --gpu-memory"
            )
        fits = needed == 0 or (room is not None and taken + needed <= room * _HEADROOM)
        if groups and (fits or taken == 0):
            groups[-1].append(name)
        else:
            groups.append([name])
            taken = 0.0
        taken += needed
    return groups


def memory(plan: Plan, stage: str) -> float:
    """GB that one copy of the stage's largest model takes on a GPU; 0 for a stage that needs none."""
    return max((s.memory_gb for c in plan.conditions for s in c.stages if s.stage == stage and s.gpu), default=0.0)


def on_gpu(plan: Plan, stage: str) -> bool:
    return any(s.gpu for c in plan.conditions for s in c.stages if s.stage == stage)


def _actor_groups(plan: Plan, names: list[str], gpus: int) -> list[ActorGroup]:
    """One actor group per run of stages of a kind."""
    if not gpus:
        return [ActorGroup(tuple(names))]
    needs = {n: max(memory(plan, n), 0.5) for n in names if on_gpu(plan, n)}
    groups = []
    for heavy, run in itertools.groupby(names, needs.__contains__):  # in order: a ticket meets what it needs first
        if heavy:
            shares = {n: math.floor(1000 * needs[n] / sum(needs.values())) / 1000 for n in run}
            groups += [ActorGroup((n,), share) for n, share in shares.items()]
        else:
            groups.append(ActorGroup(tuple(run)))
    return groups
