"""From what was asked for to what has to be done: conditions of stages over shards of rows. No model is loaded.

    request -> cards -> rows -> Condition(variants, shards) per defense and benchmark

A *shard* is a fixed group of rows, cut once, the same for every stage: the unit of scheduling,
storage and retry. A *stage* is one step with one model; its fingerprint says all it depends on
(``harness.pipeline.stage_specs``). A *variant* is the images as drawn (``base``) or as a regenerator makes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from harness import scorers
from harness.cards.backbone import BackboneCard
from harness.cards.load import load_card
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.scorer_ref import ScorerRef
from harness.cards.yaml_file import show
from harness.data import benchmarks
from harness.errors import UserError, nearest
from harness.pipeline import stage_kinds
from harness.pipeline.build_conditions import ConditionBuilder
from harness.pipeline.conditions import Condition, LeftOut
from harness.pipeline.request import BASELINE, Chosen, Request, choose
from harness.pipeline.spec import StageSpec
from harness.pipeline.stage_specs import Specs
from harness.store import fingerprint
from harness.store.artefacts import ArtefactFolder
from harness.store.schema import IMPORTED
from harness.store.shards import Store, is_complete


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run will do."""

    request: Request
    profile: ProfileCard
    backbone: BackboneCard
    conditions: tuple[Condition, ...]
    policies: Mapping[str, tuple[PolicyCard, ...]]  # by concept
    left_out: tuple[LeftOut, ...] = ()  # that "all" would have meant
    asked_builds: tuple[StageSpec, ...] = ()  # by themselves, whether anything is drawn with them or not
    cells: tuple[tuple[int, str], ...] = ()  # of a sweep: condition and variant of each, for the progress display

    @property
    def name(self) -> str:
        """The run's folder: readable, and the same whenever the same images are asked for."""
        asked = IMPORTED if self.request.images else "-".join(c for c in self.request.defenses if c != BASELINE)
        benches = dict.fromkeys(c.bench for c in self.conditions) if self.request.images else self.request.benches
        stem = re.sub(r"[^\w.+:=-]", "_", f"{asked or BASELINE}_{'-'.join(benches)}_{self.profile.name}")[:80]
        images = [
            [c.bench, *(v.images.fingerprint for v in c.variants), [s.key for s in c.shards]] for c in self.conditions
        ]
        return f"{stem}_{fingerprint.digest(images)[:8]}"

    @property
    def num_rows(self) -> int:
        """Images in all."""
        return sum(c.num_rows * len(c.variants) for c in self.conditions)

    @property
    def means(self) -> tuple[str, ...]:
        """Raw columns printed as they are: the profile's, and those of scorers that were asked for by name."""
        columns = list(self.profile.means)
        for name in self.request.extra_scorers:
            scorer = ScorerRef.parse(name)
            kinds = scorers.columns(scorer.stem)
            columns += [scorer.column(c) for c, kind in kinds.items() if pt.is_floating(kind) or pt.is_boolean(kind)]
        return tuple(dict.fromkeys(columns))

    @property
    def builds(self) -> tuple[StageSpec, ...]:
        """Every artefact that was asked for or that a stage is loaded with, once."""
        used = (b for c in self.conditions for s in c.stages for b in s.builds)
        return tuple({b.fingerprint: b for b in (*self.asked_builds, *used)}.values())

    def missing_builds(self, store: Store) -> list[int]:
        """Indices into ``builds`` of artefacts that are not in the store, and asked for or still to be drawn with."""
        asked = {b.fingerprint for b in self.asked_builds}
        needed = asked | {
            b.fingerprint
            for condition in self.conditions
            for spec in condition.stages
            for b in spec.builds
            if not all(is_complete(store.path(spec.stage, spec.fingerprint, s.key)) for s in condition.shards)
        }
        there = {f for f in needed if ArtefactFolder.of(store, f).is_built}
        return [i for i, b in enumerate(self.builds) if b.fingerprint in needed - there]

    def first_builds(self, store: Store) -> list[int]:
        """Those of ``missing_builds`` that are done in a phase of their own.

        What takes seconds and was not asked for by itself is built by the first worker that is loaded with it, which
        has the backbone in memory already.
        """
        return [i for i in self.missing_builds(store) if self.builds[i] in self.asked_builds or self.builds[i].is_long]

    def stage_names(self) -> list[str]:
        """Names of all stages in an order in which every row can meet them."""
        names = dict.fromkeys(s.stage for c in self.conditions for s in c.stages)
        return sorted(names, key=_place)

    def missing(self, store: Store, stages: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """(condition, shard) indices for which some stage's output is not in the store yet.

        Args:
            store: where outputs lie.
            stages: names of those that count; by default all.
        """
        return [
            (c, s)
            for c, condition in enumerate(self.conditions)
            for s, shard in enumerate(condition.shards)
            if not all(
                is_complete(store.path(p.stage, p.fingerprint, shard.key))
                for p in condition.stages
                if stages is None or p.stage in stages
            )
        ]


def make(
    request: Request, roots: Sequence[Path], data: Path, hashes: fingerprint.FileHashes, *, expected: bool = False
) -> Plan:
    """Resolve every name, read the prompts, cut the shards and fingerprint the stages.

    Args:
        request: what is asked for.
        roots: folders of cards.
        data: folder where ``harness fetch`` puts benchmark files.
        hashes: of files, as far as they are known.
        expected: plan benchmarks whose file is not there with as many blank rows as their card counts; such a plan is
            for looking at only.

    Raises:
        UserError: an unknown name, a malformed card or file, nothing to do.
    """
    chosen = choose(request, roots, data)
    profile, backbone = chosen.profile, chosen.backbone
    builder = ConditionBuilder(request, chosen, Specs(profile, backbone, roots, hashes))
    conditions = [builder.imported()] if request.images else _benchmarks(builder, data, expected)
    benches = {c.bench for c in conditions}
    left_out = tuple(pair for bench in chosen.benches if bench.name in benches for pair in builder.left_out(bench))
    if left_out and {c.defense for c in conditions} <= {BASELINE}:  # as after a concept that is misspelt: it is refused
        next(d for d in chosen.defenses if d.name == left_out[0].defense).resolve(profile.edition, left_out[0].concept)
    concepts = dict.fromkeys(c.concept for c in conditions)
    _check_means(profile)
    policies = {c: tuple(load_card(PolicyCard, p, roots) for p in profile.policies(c)) for c in concepts}
    return Plan(
        request=request,
        profile=profile,
        backbone=backbone,
        conditions=tuple(conditions),
        policies=policies,
        left_out=left_out,
    )


def _benchmarks(builder: ConditionBuilder, data: Path, expected: bool) -> list[Condition]:
    """A condition per benchmark and defense, over the rows asked for."""
    request, chosen = builder.request, builder.chosen
    profile, backbone = chosen.profile, chosen.backbone
    absent = absent_benchmarks(chosen, data) if expected else []
    whole = {
        bench.name: benchmarks.expected(bench, profile, backbone)
        if bench.name in absent
        else benchmarks.read(bench, profile, backbone, data, builder.removed(bench))
        for bench in chosen.benches
    }
    every = pa.concat_tables(whole.values())
    if request.categories and not absent:
        every = benchmarks.in_categories(every, chosen.benches, profile, data, request.categories)
    asked = benchmarks.restrict(every, request.limit, list(request.ids) or None)
    if asked.num_rows < sum(rows.num_rows for rows in whole.values()):
        builder = builder.of_subset(max(pc.value_counts(asked["bench"]).field("counts").to_pylist()))
    conditions: list[Condition] = []
    for bench in chosen.benches:
        rows = asked.filter(pc.equal(asked["bench"], bench.name)).combine_chunks()
        if rows.num_rows:  # --ids may name rows of some of the benchmarks only
            conditions += builder.conditions(bench, rows, whole[bench.name].num_rows)
    return conditions


def absent_benchmarks(chosen: Chosen, data: Path) -> list[str]:
    """Names of the benchmarks whose file is not on this machine."""
    edition = chosen.profile.edition
    return [b.name for b in chosen.benches if not benchmarks.file_of(b, b.edition(edition), data).exists()]


def _check_means(profile: ProfileCard) -> None:
    """Refuse a mean of a column that no scorer of the profile has; it would silently never be printed."""
    asked = dict.fromkeys(s for concept in profile.concepts for s in profile.measures(concept).scorers)
    there = []
    for name in asked:
        scorer = ScorerRef.parse(name)
        there += [scorer.column(column) for column in scorers.columns(scorer.stem)]
    for wanted in profile.means:
        if wanted not in there:
            raise UserError(f"means: no scorer has {wanted!r}{nearest(wanted, there)}; see {show(profile.path)}")


def _place(stage: str) -> tuple[int, str]:
    return stage_kinds.declared(stage.partition("-")[0]).place, stage
