"""From chosen cards and rows to conditions: a defense over a benchmark, its stages and its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from harness import scorers
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseStack
from harness.cards.scorer_ref import ScorerRef
from harness.data import image_folder
from harness.errors import UserError
from harness.metrics.comparison import BASE
from harness.pipeline import stage_kinds
from harness.pipeline.conditions import Condition, LeftOut, Shard, Variant, shards_of
from harness.pipeline.request import BASELINE, Chosen, Request
from harness.pipeline.spec import Source, StageSpec
from harness.pipeline.stage_specs import Specs
from harness.regenerators.variants import Regenerator
from harness.store.schema import IMPORTED, PROMPT


@dataclass(frozen=True)
class ConditionBuilder:
    request: Request
    chosen: Chosen
    specs: Specs

    def of_subset(self, most_rows: int) -> ConditionBuilder:
        """A builder for conditions of at most ``most_rows`` rows, whose micro-batches are no larger than that."""
        return replace(self, specs=replace(self.specs, most_rows=most_rows))

    def conditions(self, bench: BenchmarkCard, rows: pa.Table, total: int) -> Iterator[Condition]:
        """One condition per defense; the first undefended one provides the reference images of the others."""
        if self.request.seed is not None:
            rows = _seeded(rows, self.request.seed)
        cut = self.chosen.profile.shard_rows
        plain = {BASELINE: tuple(shards_of(self._named(rows, BASELINE), cut))}
        unfit = {pair.defense for pair in self.left_out(bench)}
        for defense in (d for d in self.chosen.defenses if d.name not in unfit):
            defended = self._defended(defense, bench)
            shards = plain.get(defense.name) or tuple(shards_of(self._named(rows, defense.name), cut))
            yield Condition(
                defense=defense.name,
                bench=bench.name,
                concept=bench.concept,
                defended=defended,
                total_rows=total,
                variants=tuple(self._variants(defense, defended, bench.concept, _beside(shards, plain[BASELINE]))),
                shards=shards,
            )

    def _defended(self, defense: DefenseStack, bench: BenchmarkCard) -> str:
        """What ``defense`` removes; one without concepts (`none`) is the same whatever it is asked to remove."""
        return bench.concept if not defense.has_concepts else self.request.concept or bench.concept

    def removed(self, bench: BenchmarkCard) -> set[str]:
        """The concepts that the compared methods remove; the guard judges the benchmark's prompts for each of them."""
        unfit = {pair.defense for pair in self.left_out(bench)}
        defended = {self._defended(d, bench) for d in self.chosen.defenses if d.name not in unfit}
        concept = self.request.concept or bench.concept
        return defended | ({concept} if any(self._wanted(regen, concept) for regen in self.chosen.regens) else set())

    def left_out(self, bench: BenchmarkCard) -> list[LeftOut]:
        """Defenses left out of the benchmark whose concept their cards lack, unless both were named."""
        named = self.chosen.named if bench.name in self.request.benches else ()
        pairs = [(d, self._defended(d, bench)) for d in self.chosen.defenses if d.name not in named]
        edition = self.specs.profile.edition
        return [LeftOut(d.name, bench.name, concept) for d, concept in pairs if not d.declares(edition, concept)]

    def imported(self) -> Condition:
        """The condition of images that were not drawn here."""
        concept = self.request.concept
        if concept is None:
            raise UserError("--concept says what is to be looked for in the images: it has no benchmark to say so")
        assert self.request.images is not None
        rows, left_out = image_folder.read(Path(self.request.images), concept, self.specs.backbone)
        if self.request.limit is not None:
            rows = rows.slice(0, self.request.limit)
        if self.request.seed is not None:
            rows = _seeded(rows, self.request.seed)
        for name, value in {"profile": self.specs.profile.name, "backbone": IMPORTED, "defense": IMPORTED}.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        rows = rows.append_column("variant", pa.array([BASE] * rows.num_rows, pa.string()))
        base = self.specs.imported()
        fitted = self.of_subset(rows.num_rows)
        variants = [Variant(name=BASE, steps=(base,), scores=self._scores(concept, base, {}))]
        for regen in self.chosen.regens:
            if regen.draw and regen.draw.defended:
                raise UserError(f"regenerator {regen.variant!r} draws under a defense, and given images have none")
            if self._wanted(regen, concept):
                variants.append(fitted._variant(regen, self.chosen.undefended, concept, concept, base, None))
        return Condition(
            defense=IMPORTED,
            bench=rows["bench"][0].as_py(),
            concept=concept,
            defended=concept,
            total_rows=rows.num_rows,
            variants=tuple(variants),
            shards=tuple(shards_of(rows, self.specs.profile.shard_rows)),
            left_out={f"left out, {reason}": files for reason, files in left_out.items()},
        )

    def _named(self, rows: pa.Table, defense: str) -> pa.Table:
        """The rows with the columns that say which condition they belong to."""
        identity = {
            "profile": self.specs.profile.name, "backbone": self.specs.backbone.name,
            "defense": defense, "variant": BASE,
        }  # fmt: skip
        rows = rows.select(PROMPT.names)
        for name, value in identity.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return rows

    def _variants(
        self, defense: DefenseStack, defended: str, concept: str, undefended_keys: Mapping[str, str]
    ) -> Iterator[Variant]:
        base = self.specs.generate(defense, defended)
        removed = self.request.concept or concept
        plain = None  # the undefended images, where they are part of the run
        if BASELINE in [d.name for d in self.chosen.defenses]:
            undefended = self.specs.generate(self.chosen.undefended, concept)
            plain = Source(undefended.stage, undefended.fingerprint, undefended_keys)
        references = {"none/base": plain if defense.name != BASELINE else None}
        yield Variant(name=BASE, steps=(base,), scores=self._scores(concept, base, references))
        for regen in self.chosen.regens:
            if not self._wanted(regen, removed):
                continue
            original = base.source if defense.name == BASELINE else plain
            yield self._variant(regen, defense, removed, concept, base, original)

    def _variant(
        self,
        regen: Regenerator,
        defense: DefenseStack,
        removed: str,
        scored: str,
        base: StageSpec,
        original: Source | None,
    ) -> Variant:
        """The images of ``base`` made anew; ``original`` are the undefended ones, where the run has them."""
        steps = self._regenerate(regen, defense, removed, base)
        scores = self._scores(scored, steps[-1], {"same/base": base.source, "none/base": original})
        return Variant(
            name=regen.variant, steps=steps, scores=scores, method=regen.method(), settings=regen.deviations()
        )

    def _wanted(self, regen: Regenerator, concept: str) -> bool:
        """Whether ``concept`` can be removed; a regenerator that was asked for by name must be able to."""
        if regen.admits(self.specs.profile.edition, concept):
            return True
        if self.request.regens is None:
            return False
        from harness.regenerators import questions

        raise UserError(
            f"regenerator {regen.variant!r} has no questions to ask about concept {concept!r} "
            f"(it has for: {', '.join(questions.concepts(self.specs.profile.edition))}); name one of them with "
            "--concept, or leave it out with --regen none"
        )

    def _regenerate(
        self, regen: Regenerator, defense: DefenseStack, concept: str, base: StageSpec
    ) -> tuple[StageSpec, ...]:
        """The steps of one regenerator, from the base images to its own."""
        steps = self._redrawn(regen, defense, concept, base)
        for kind in stage_kinds.steps(regen.card):
            steps = (*steps, self.specs.step(kind, regen, steps[-1]))
        return steps

    def _redrawn(
        self, regen: Regenerator, defense: DefenseStack, concept: str, base: StageSpec
    ) -> tuple[StageSpec, ...]:
        """The steps up to what a regenerator draws or edits; the base alone where it does neither."""
        if regen.edit is not None:
            return base, self.specs.edit(regen, concept, base)
        if regen.draw is None:
            return (base,)
        caption = self.specs.caption(regen, concept, base) if regen.caption else None
        embed = self.specs.embed(base, caption) if regen.optimise else None
        optimise = self.specs.optimise(regen, concept, embed) if embed else None
        made = [s for s in (caption, optimise) if s is not None]
        under = defense if regen.draw.defended else self.chosen.undefended
        draw = self.specs.draw(regen, under, concept, base, made)
        return tuple(s for s in (base, caption, embed, optimise, draw) if s is not None)

    def _scores(
        self, concept: str, images: StageSpec, references: Mapping[str, Source | None]
    ) -> tuple[StageSpec, ...]:
        """The scorers of ``concept``; a pair scorer where these images have the reference it names."""
        wanted = dict.fromkeys((*self.specs.profile.measures(concept).scorers, *self.request.extra_scorers))
        stages = []
        for name in wanted:
            scorer = ScorerRef.parse(name)
            if scorers.pair(scorer.stem) != (scorer.reference is not None):
                either = " or @".join(scorers.REFERENCES)
                form = f"needs a reference: {scorer.stem}@{either}"
                form = form if scorer.reference is None else "compares with no other image"
                raise UserError(f"scorer {name!r}: {scorer.stem} {form}")
            reference = references.get(scorer.reference) if scorer.reference is not None else None
            if scorer.reference is None or reference is not None:
                stages.append(self.specs.score(scorer, images, reference))
        return tuple(stages)


def _seeded(rows: pa.Table, seed: int) -> pa.Table:
    """The rows with one seed for all prompts; a prompt's further samples have the next ones."""
    seeds = pa.array([seed + sample for sample in rows["sample"].to_pylist()], pa.uint64())
    return rows.set_column(rows.column_names.index("seed"), "seed", seeds)


def _beside(shards: Sequence[Shard], others: Sequence[Shard]) -> dict[str, str]:
    """Each shard's key to that of the shard with the same prompts under another defense."""
    return {own.key: other.key for own, other in zip(shards, others, strict=True)}
