"""From what was asked for to what has to be done: chains of stages over shards of rows. No model is loaded.

    request -> cards -> rows -> Chain(variants, shards) per defense and benchmark

A *shard* is a fixed group of rows, cut once, the same for every stage: the unit of scheduling,
storage and retry. A *stage* is one step with one model; its fingerprint says all it depends on
(``harness.specs``). A *variant* is the pictures as drawn (``base``) or as a regenerator makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from harness import cards, defenses, fingerprint, images, overrides, prompts, regenerators, scorers
from harness.cardfile import show
from harness.cards import BackboneCard, DefenseCard, PolicyCard, ProfileCard
from harness.chain import Chain, LeftOut, Shard, Variant, shards_of
from harness.compare import BASE
from harness.datasetcard import DatasetCard
from harness.errors import UserError, nearest
from harness.regenerators import Regenerator
from harness.schema import PROMPT
from harness.specs import Source, Specs, StageSpec
from harness.store import Store, whole

BASELINE = "none"
GIVEN = "given"  # in a defense's place: pictures that nobody here has drawn


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person chose on the command line."""

    defenses: tuple[str, ...]
    benches: tuple[str, ...]
    profile: str = "paper"
    backbone: str | None = None  # the profile's
    concept: str | None = None  # the benchmark's; what the defense and the regenerator remove
    regens: tuple[str, ...] | None = None  # null: the profile's
    limit: int | None = None
    ids: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # only prompts about any of these
    seed: int | None = None  # replaces every row's
    baseline: bool = True  # `none` beside, for comparison
    extra_scorers: tuple[str, ...] = ()
    images: str | None = None  # pictures that are taken as they are, instead of defenses over benchmarks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run will do."""

    request: Request
    profile: ProfileCard
    backbone: BackboneCard
    chains: tuple[Chain, ...]
    policies: Mapping[str, tuple[PolicyCard, ...]]  # by concept
    left_out: tuple[LeftOut, ...] = ()  # that "all" would have meant

    @property
    def name(self) -> str:
        """The run's folder: readable, and the same whenever the same pictures are asked for."""
        asked = GIVEN if self.request.images else "-".join(c for c in self.request.defenses if c != BASELINE)
        benches = dict.fromkeys(c.bench for c in self.chains) if self.request.images else self.request.benches
        stem = f"{asked or BASELINE}_{'-'.join(benches)}_{self.profile.name}"[:80]
        pictures = [
            [c.bench, *(v.images.fingerprint for v in c.variants), [s.key for s in c.shards]] for c in self.chains
        ]
        return f"{stem}_{fingerprint.digest(pictures)[:8]}"

    @property
    def num_rows(self) -> int:
        """Pictures in all."""
        return sum(c.num_rows * len(c.variants) for c in self.chains)

    @property
    def means(self) -> tuple[str, ...]:
        """Raw columns printed as they are: the profile's, and those of scorers that were asked for by name."""
        found = list(self.profile.means)
        for name in self.request.extra_scorers:
            stem, at, reference = name.partition("@")
            plain = [c for c, kind in scorers.columns(stem).items() if pt.is_floating(kind) or pt.is_boolean(kind)]
            found += [f"{column}{at}{reference}" for column in plain]
        return tuple(dict.fromkeys(found))

    def stage_names(self) -> list[str]:
        """Names of all stages in an order in which every row can meet them."""
        found = dict.fromkeys(s.stage for c in self.chains for s in c.stages)
        return sorted(found, key=_place)

    def missing(self, store: Store, stages: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """(chain, shard) indices for which some stage's output is not in the store yet.

        Args:
            store: where outputs lie.
            stages: names of those that count; by default all.
        """
        return [
            (c, s)
            for c, chain in enumerate(self.chains)
            for s, shard in enumerate(chain.shards)
            if not all(
                whole(store.path(p.stage, p.fingerprint, shard.key))
                for p in chain.stages
                if stages is None or p.stage in stages
            )
        ]


def make(request: Request, roots: Sequence[Path], data: Path, hashes: fingerprint.FileHashes) -> Plan:
    """Resolve every name, read the prompts, cut the shards and fingerprint the stages.

    Args:
        data: folder where ``harness fetch`` puts benchmark files.

    Raises:
        UserError: an unknown name, a malformed card or file, nothing to do.
    """
    chosen = choose(request, roots)
    profile, backbone = chosen.profile, chosen.backbone
    builder = _Builder(request, chosen, Specs(profile, backbone, roots, hashes))
    chains = [builder.given()] if request.images else _benchmarks(builder, data)
    benches = {c.bench for c in chains}
    left_out = tuple(pair for bench in chosen.benches if bench.name in benches for pair in builder.left_out(bench))
    if left_out and {c.defense for c in chains} <= {BASELINE}:  # as after a concept that is misspelt: it is refused
        next(d for d in chosen.defenses if d.name == left_out[0].defense).resolve(profile.edition, left_out[0].concept)
    concepts = dict.fromkeys(c.concept for c in chains)
    _check_means(profile)
    policies = {c: tuple(cards.load("policy", p, roots) for p in profile.policies(c)) for c in concepts}
    return Plan(
        request=request, profile=profile, backbone=backbone, chains=tuple(chains), policies=policies, left_out=left_out
    )


def _benchmarks(builder: _Builder, data: Path) -> list[Chain]:
    """A chain per benchmark and defense, over the rows asked for."""
    request, chosen = builder.request, builder.chosen
    profile, backbone = chosen.profile, chosen.backbone
    whole = {bench.name: prompts.read(bench, profile, backbone, data) for bench in chosen.benches}
    every = pa.concat_tables(whole.values())
    if request.categories:
        every = prompts.in_categories(every, chosen.benches, profile, data, request.categories)
    asked = prompts.restrict(every, request.limit, list(request.ids) or None)
    chains: list[Chain] = []
    for bench in chosen.benches:
        rows = asked.filter(pc.equal(asked["bench"], bench.name)).combine_chunks()
        if rows.num_rows:  # --ids may name rows of some of the benchmarks only
            chains += builder.chains(bench, rows, whole[bench.name].num_rows)
    return chains


class Chosen(NamedTuple):
    """The cards that a request names."""

    profile: ProfileCard
    backbone: BackboneCard
    benches: list[DatasetCard]
    defenses: list[DefenseCard]
    regens: list[Regenerator]
    undefended: DefenseCard


def choose(request: Request, roots: Sequence[Path]) -> Chosen:
    """Load every card that ``request`` names; "all" means benchmarks that the profile has an edition of, and defenses
    that work with the backbone; of their pairs those for which the defense is declared (``Plan.left_out``).

    Raises:
        UserError: an unknown name or a malformed card.
    """
    profile = cards.load("profile", request.profile, roots)
    backbone = overrides.backbone(request.backbone or profile.backbone, roots)
    asked_for = [] if request.images else _names(request.benches, "dataset", roots)
    benches = [cards.load("dataset", b, roots) for b in asked_for]
    if "all" in request.benches:
        benches = [b for b in benches if profile.edition in b.editions or b.name in request.benches]
    names = [] if request.images else _names(request.defenses, "defense", roots)
    if request.baseline and not request.images and BASELINE not in names:
        names = [BASELINE, *names]
    methods = [cards.load("defense", d, roots) for d in names]
    if "all" in request.defenses:
        methods = [m for m in methods if defenses.works(m, backbone) or m.name in request.defenses]
    asked = profile.regenerators if request.regens is None else request.regens
    return Chosen(
        profile,
        backbone,
        benches,
        methods,
        regenerators.choose(asked, profile.edition, roots),
        cards.load("defense", BASELINE, roots),
    )


def _check_means(profile: ProfileCard) -> None:
    """Refuse a mean of a column that no scorer of the profile has; it would silently never be printed."""
    asked = dict.fromkeys(s for found in profile.concepts for s in profile.measures(found).scorers)
    there = []
    for name in asked:
        stem, at, reference = name.partition("@")
        there += [f"{column}{at}{reference}" for column in scorers.columns(stem)]
    for wanted in profile.means:
        if wanted not in there:
            raise UserError(f"means: no scorer has {wanted!r}{nearest(wanted, there)}; see {show(profile.path)}")


def _names(asked: Sequence[str], kind: cards.Kind, roots: Sequence[Path]) -> list[str]:
    """The names asked for, "all" spelt out, each once."""
    if not asked:
        raise UserError(f"no {kind} chosen (there are: {', '.join(cards.names(kind, roots))})")
    names = [n for a in asked for n in (cards.names(kind, roots) if a == "all" else [a])]
    return list(dict.fromkeys(names))


_ORDER = ("given", "generate", "caption", "embed", "optimise", "draw", "edit", "score")


def _place(stage: str) -> tuple[int, str]:
    return _ORDER.index(stage.partition("-")[0]), stage


@dataclass(frozen=True)
class _Builder:
    request: Request
    chosen: Chosen
    specs: Specs

    def chains(self, bench: DatasetCard, rows: pa.Table, total: int) -> Iterator[Chain]:
        """A chain per defense; the first undefended one is what the others' pictures may be compared with."""
        if self.request.seed is not None:
            rows = _seeded(rows, self.request.seed)
        cut = self.chosen.profile.shard_rows
        plain = {BASELINE: tuple(shards_of(self._named(rows, BASELINE), cut))}
        unfit = {pair.defense for pair in self.left_out(bench)}
        for defense in (d for d in self.chosen.defenses if d.name not in unfit):
            defended = self._defended(defense, bench)
            shards = plain.get(defense.name) or tuple(shards_of(self._named(rows, defense.name), cut))
            yield Chain(
                defense=defense.name,
                bench=bench.name,
                concept=bench.concept,
                defended=defended,
                total_rows=total,
                variants=tuple(self._variants(defense, defended, bench.concept, _beside(shards, plain[BASELINE]))),
                shards=shards,
            )

    def _defended(self, defense: DefenseCard, bench: DatasetCard) -> str:
        """What ``defense`` removes; one without concepts (`none`) is the same whatever it is asked to remove."""
        return bench.concept if defense.concepts is None else self.request.concept or bench.concept

    def left_out(self, bench: DatasetCard) -> list[LeftOut]:
        """Defenses that declare nothing for the benchmark's concept, unless both were asked for by name."""
        named = self.request.defenses if bench.name in self.request.benches else ()
        pairs = [(d, self._defended(d, bench)) for d in self.chosen.defenses if d.name not in named]
        edition = self.specs.profile.edition
        return [LeftOut(d.name, bench.name, concept) for d, concept in pairs if not d.declares(edition, concept)]

    def given(self) -> Chain:
        """The chain of pictures that were not drawn here."""
        concept = self.request.concept
        if concept is None:
            raise UserError("--concept says what is to be looked for in the pictures: it has no benchmark to say so")
        assert self.request.images is not None
        rows = images.read(Path(self.request.images), concept, self.specs.backbone)
        if self.request.limit is not None:
            rows = rows.slice(0, self.request.limit)
        if self.request.seed is not None:
            rows = _seeded(rows, self.request.seed)
        for name, value in {"profile": self.specs.profile.name, "backbone": GIVEN, "defense": GIVEN}.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        rows = rows.append_column("variant", pa.array([BASE] * rows.num_rows, pa.string()))
        base = self.specs.given()
        found = [Variant(name=BASE, steps=(base,), scores=self._scores(concept, base, {}))]
        for regen in self.chosen.regens:
            if regen.draw and regen.draw.defended:
                raise UserError(f"regenerator {regen.variant!r} draws under a defense, and given pictures have none")
            if self._wanted(regen, concept):
                found.append(self._variant(regen, self.chosen.undefended, concept, concept, base, None))
        return Chain(
            defense=GIVEN,
            bench=rows["bench"][0].as_py(),
            concept=concept,
            defended=concept,
            total_rows=rows.num_rows,
            variants=tuple(found),
            shards=tuple(shards_of(rows, self.specs.profile.shard_rows)),
        )

    def _named(self, rows: pa.Table, defense: str) -> pa.Table:
        """The rows with the columns that say which chain they belong to."""
        identity = {
            "profile": self.specs.profile.name, "backbone": self.specs.backbone.name,
            "defense": defense, "variant": BASE,
        }  # fmt: skip
        rows = rows.select(PROMPT.names)
        for name, value in identity.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return rows

    def _variants(
        self, defense: DefenseCard, defended: str, concept: str, undefended_keys: Mapping[str, str]
    ) -> Iterator[Variant]:
        base = self.specs.generate(defense, defended)
        removed = self.request.concept or concept
        plain = None  # the undefended pictures, where they are part of the run
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
        defense: DefenseCard,
        removed: str,
        scored: str,
        base: StageSpec,
        original: Source | None,
    ) -> Variant:
        """The pictures of ``base`` made anew; ``original`` are the undefended ones, where the run has them."""
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
        from harness.resafe import turns

        raise UserError(
            f"regenerator {regen.variant!r} has no questions to ask about concept {concept!r} "
            f"(it has for: {', '.join(turns.concepts(self.specs.profile.edition))}); name one of them with --concept, "
            "or leave it out with --regen none"
        )

    def _regenerate(
        self, regen: Regenerator, defense: DefenseCard, concept: str, base: StageSpec
    ) -> tuple[StageSpec, ...]:
        """The steps of one regenerator, from the base pictures to its own."""
        if regen.edit is not None:
            return base, self.specs.edit(regen, concept, base)
        assert regen.draw is not None
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
        """The scorers of ``concept``; a pair scorer where these pictures have the reference it names."""
        wanted = dict.fromkeys((*self.specs.profile.measures(concept).scorers, *self.request.extra_scorers))
        found = []
        for name in wanted:
            stem, _, beside = name.partition("@")
            if scorers.pair(stem) != bool(beside):
                form = (
                    "compares with no other picture" if beside else f"needs a reference: {stem}@same/base or @none/base"
                )
                raise UserError(f"scorer {name!r}: {stem} {form}")
            reference = references.get(beside)
            if not beside or reference is not None:
                found.append(self.specs.score(name, images, reference))
        return tuple(found)


def _seeded(rows: pa.Table, seed: int) -> pa.Table:
    """The rows with one seed for all prompts; a prompt's further samples have the next ones."""
    seeds = pa.array([seed + sample for sample in rows["sample"].to_pylist()], pa.uint64())
    return rows.set_column(rows.column_names.index("seed"), "seed", seeds)


def _beside(shards: Sequence[Shard], others: Sequence[Shard]) -> dict[str, str]:
    """Each shard's key to that of the shard with the same prompts under another defense."""
    return {own.key: other.key for own, other in zip(shards, others, strict=True)}
